"""Makes ``toy_model`` importable, by tests and by the processes that they start."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
