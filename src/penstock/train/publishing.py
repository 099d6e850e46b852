"""Which versions of a model are published while it learns, and where to."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.errors import ConfigError
from penstock.models import KeepVersions
from penstock.models.remote import RemoteFolder

__all__ = ["Publish"]


@dataclass(frozen=True, kw_only=True)
class Publish:
    """Versions of a model for whoever serves it, in the run's output folder."""

    every_s: float | None = None
    """Seconds between two; None for only at the end."""
    to: str | None = None
    """URL of a store, such as ``s3://bucket/ctr``, where they are copied to, beside the training."""
    keep: KeepVersions = KeepVersions()  # noqa: RUF009 - frozen
    """Which stay, to go back to."""

    def __post_init__(self) -> None:
        if self.every_s is not None and not self.every_s > 0:
            raise ConfigError(f"seconds between published versions must be > 0, got {self.every_s:g}")
        if self.to is not None:
            if "://" not in self.to:
                raise ConfigError(
                    f"publish to {self.to!r}: allowed: a URL, such as s3://bucket/ctr or file:///shared/ctr"
                )
            RemoteFolder(self.to)  # that it can be, is known before the training
