"""A model as one file for ``penstock.score``, which needs NumPy alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.export.rows import checked, header_of, nonzero_rows
from penstock.models import Model
from penstock.score import file

__all__ = ["NpzExport", "write_npz"]


@dataclass(frozen=True, kw_only=True)
class NpzExport:
    """What was written."""

    rows: int
    """Rows of the model whose weight is not 0."""
    nbytes: int


def write_npz(model: Model, path: str | Path, *, manifest: Mapping[str, Any] | None = None) -> NpzExport:
    """Write a model for ``penstock.score.Scorer``; ``manifest`` is that of its folder, for the version.

    The file's format is in ``penstock.score.file``.

    Raises:
        ConfigError: the model is not logistic regression, or has not been fitted.
        ModelError: a weight is not finite.
        StorageError: the file cannot be written.
    """
    linear, plan = checked(model)
    keys, weights = nonzero_rows(linear)
    nbytes = file.write(path, header_of(linear, plan, manifest), keys, weights)
    return NpzExport(rows=len(keys), nbytes=nbytes)
