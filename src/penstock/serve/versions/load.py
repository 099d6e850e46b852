"""Versions of models from their folders, ready to answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from penstock.errors import ModelError, StorageError
from penstock.models import load_shell, read_manifest
from penstock.models.manifest import parse_manifest
from penstock.serve.scorer import Scorer
from penstock.serve.versions.weights import load_tables, remove_unused

__all__ = ["Loader", "load_scorer"]


@dataclass(frozen=True, kw_only=True)
class Loader:
    """Loads versions of one model."""

    folder: Path
    mapped: Path | None = None
    """Folder for index files that are mapped; None for rows in memory."""

    def load(self, manifest: dict[str, Any], before: Scorer | None = None) -> Scorer:
        """The version of a manifest; what ``before``, another one, has of its rows is not read again.

        Raises:
            ModelError: a file is damaged or missing, or a weight is not finite.
            StorageError: an index file cannot be written.
        """
        model = load_shell(self.folder, manifest)
        try:
            tables = load_tables(
                self.folder,
                parse_manifest(self.folder, manifest),
                before=before.tables if before is not None else None,
                mapped=self.mapped,
            )
        except FileNotFoundError as error:
            raise ModelError(f"{error.filename}: the manifest names this file, but it is missing") from error
        except OSError as error:
            where = error.filename or self.folder
            raise ModelError(f"{where}: cannot be read: {error.strerror or error}") from error
        scorer = Scorer(model, tables, manifest)
        try:
            _warm_up(scorer)
        except StorageError:
            if not scorer.damaged:
                raise
            return self.load(manifest)  # its mapped file was found damaged, and is gone
        return scorer

    def forget_but(self, scorers: Mapping[str, Scorer]) -> None:
        """Remove index files that none of these needs."""
        if self.mapped is not None:
            remove_unused(self.mapped, [table for each in scorers.values() for table in each.tables.values()])


def load_scorer(folder: str | Path, *, mapped: Path | None = None) -> Scorer:
    """The model that is valid in a folder.

    Raises:
        ModelError: there is none, or it is damaged.
        StorageError: an index file cannot be written.
    """
    loader = Loader(folder=Path(folder), mapped=mapped)
    while True:
        manifest = read_manifest(folder)
        try:
            return loader.load(manifest)
        except ModelError:
            if read_manifest(folder) == manifest:  # else a writer has replaced it meanwhile
                raise


def _warm_up(scorer: Scorer) -> None:
    """Have the kernels compiled before the first request."""
    plan = scorer.model.plan
    assert plan is not None
    row = dict.fromkeys(plan.inputs)
    scorer.score([row])
    scorer.score_table(pa.Table.from_batches([scorer.reader.read([row])]))
