"""The exported model of the scorer's tests; and ``toy_model`` under the name by which others import it."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.score.conftest import exported

__all__ = ["exported"]

MODELS = str(Path(__file__).parents[1] / "models")
if MODELS not in sys.path:
    sys.path.append(MODELS)
