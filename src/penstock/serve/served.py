"""What is served under one name: the version that answers, and perhaps another that gets a share of requests."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.errors import ConfigError
from penstock.serve.batching import Batcher
from penstock.serve.scorer import Scorer

__all__ = ["Canary", "Served"]


@dataclass(frozen=True, kw_only=True)
class Canary:
    """A version that is tried on some of the requests."""

    scorer: Scorer
    share: float
    """Of the requests that ask for no version, 0 to 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"the share of a canary must be 0 to 1, got {self.share:g}")


class Served:
    """Versions of one model, each with its batches."""

    def __init__(self, scorer: Scorer, canary: Canary | None = None) -> None:
        self.stable = Batcher(scorer)
        self.canary = Batcher(canary.scorer) if canary is not None else None
        self._share = canary.share if canary is not None else 0.0
        self._owed = 0.0

    def pick(self, version: str | None = None) -> Batcher | None:
        """Who answers the next request: for a version, if it is there; else in turns, and the share is exact."""
        if version is not None:
            return next((each for each in self.batchers() if each.scorer.version == version), None)
        if self.canary is not None:
            self._owed += self._share
            if self._owed >= 1:
                self._owed -= 1
                return self.canary
        return self.stable

    def batchers(self) -> list[Batcher]:
        """That of the version that answers first."""
        return [self.stable] if self.canary is None else [self.stable, self.canary]

    def versions(self) -> list[str]:
        """Those that are served."""
        return [each.scorer.version for each in self.batchers()]

    def role(self, batcher: Batcher) -> str:
        """What it is called in metrics."""
        return "canary" if batcher is self.canary else "stable"
