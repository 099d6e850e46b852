"""What a run is, in plain values: all that crosses to the roles, and no code.

The submitter makes it, the coordinator hands it to whoever joins.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from penstock.data import Source
from penstock.data.describe import open_described
from penstock.errors import ConfigError
from penstock.features import FeaturePlan
from penstock.models import KeepVersions
from penstock.parameter_server import Consistency, parse_consistency
from penstock.train import Holdout, Publish
from penstock.train.stream import Keep, read_for

__all__ = ["RunSpec", "Slowness", "import_modules"]


class Slowness(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """For experiments: a worker's steps take ``factor`` times as long, and at least ``step_s``; it waits
    meanwhile."""

    factor: float = 1.0
    step_s: float = 0.0


class RunSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A run of the parameter server."""

    model: dict[str, Any]
    """``Model.to_spec``."""
    data: dict[str, Any]
    """``data.describe``."""
    passes: int = 1
    minibatch: int = 1024
    """Rows of a micro-batch."""
    micro_batches: int = 4
    """Of a global batch: the number of lanes."""
    consistency: str = "asp"
    depth: int = 4
    """Micro-batches that a worker has under way at once."""
    window: int = 1
    """Of them, between their pull and their push."""
    servers: int = 1
    holdout: dict[str, Any] | None = None
    output: str
    """Folder that every role can write to."""
    checkpoint_every_s: float | None = 300.0
    publish_every_s: float | None = None
    """Between versions for those who serve; each is a checkpoint too."""
    publish_to: str | None = None
    keep_versions: int = 16
    keep_for_s: float = 3600.0
    gather_s: float = 60.0
    """To wait for servers and a first worker."""
    resume: bool = False
    imports: list[str] = []
    """Modules that register models, optimizers and server functions of the user's own."""
    slow: dict[str, Slowness] = {}
    job: dict[str, Any] | None = None

    @staticmethod
    def from_dict(spec: Mapping[str, Any]) -> RunSpec:
        """From plain values.

        Raises:
            ConfigError: they are not a run of this version.
        """
        try:
            return msgspec.convert(spec, RunSpec)
        except msgspec.ValidationError as error:
            raise ConfigError(f"run: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain

    def load_imports(self) -> None:
        """Import the user's modules; see ``import_modules``."""
        import_modules(self.imports)

    @property
    def publish(self) -> Publish:
        """Which versions are for those who serve."""
        keep = KeepVersions(newest=self.keep_versions, for_s=self.keep_for_s)
        return Publish(every_s=self.publish_every_s, to=self.publish_to, keep=keep)

    @property
    def how(self) -> Consistency:
        """The consistency."""
        return parse_consistency(self.consistency)

    @property
    def plan(self) -> FeaturePlan:
        """The feature plan."""
        return FeaturePlan.from_dict(self.model["features"])

    @property
    def files(self) -> list[str]:
        """What is read."""
        return list(self.data["files"])

    def open(self) -> Source:
        """The data, read as the plan wants."""
        return read_for(open_described(self.data), self.plan)

    @property
    def segments(self) -> int:
        """Of each table."""
        return int(self.model["segments"])

    def keep(self) -> tuple[Keep | None, tuple[str, ...]]:
        """Which rows are learnt, and the column that this is told by."""
        if self.holdout is None:
            return None, ()
        holdout = Holdout(**self.holdout)
        learnt, _ = holdout.split(self.plan)
        return learnt, holdout.columns(self.plan)


def import_modules(names: Sequence[str]) -> None:
    """Import the user's modules, by name, from this process's path: they register what they have.

    Raises:
        ConfigError: one cannot be imported.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(f"module {name!r} cannot be imported: {error}") from error
