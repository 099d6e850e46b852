"""Models as a command line names them: where each is, which version, and who gets a share of its requests."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from penstock.errors import ConfigError, StorageError
from penstock.models.remote import is_url
from penstock.serve.api.app import App, ServeLimits
from penstock.serve.scorer import Scorer
from penstock.serve.served import Canary
from penstock.serve.versions.follow import Follower
from penstock.serve.versions.gate import Gate
from penstock.serve.versions.load import Loader
from penstock.serve.versions.source import LocalVersions, RemoteVersions

if TYPE_CHECKING:
    from penstock.serve.features import Features

__all__ = ["Named", "Serving", "parse_canary", "parse_model"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_GIVEN = re.compile(r"(?:(?P<name>[^=/]*)=)?(?P<place>.+?)(?:@(?P<version>\d{1,9}))?", re.DOTALL)


@dataclass(frozen=True)
class Named:
    """A model to serve."""

    name: str
    place: str
    """Folder or URL."""
    version: int | None = None
    """None for the newest."""
    share: float | None = None
    """Of the requests, where it is a canary."""


def parse_model(text: str) -> Named:
    """Of ``[NAME=]MODEL[@VERSION]``.

    Raises:
        ConfigError: it is none.
    """
    found = _GIVEN.fullmatch(text)
    if found is None:
        raise ConfigError(f"model {text!r}: allowed: [NAME=]MODEL[@VERSION]")
    place = found["place"]
    name = found["name"] if found["name"] is not None else (Path(place).resolve().name if place else "")
    if found["version"] is None and "@" in place.rpartition("/")[2]:
        version = place.rpartition("@")[2]
        raise ConfigError(f"model {text}: got the version {version!r}, allowed: a number")
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"model {text}: got the name {name!r}, allowed: letters, digits, _ . -; give one: NAME={place}"
        )
    return Named(name, place, int(found["version"]) if found["version"] is not None else None)


def parse_canary(text: str) -> Named:
    """Of ``[NAME=]MODEL[@VERSION]:SHARE``.

    Raises:
        ConfigError: it is none.
    """
    model, colon, share = text.rpartition(":")
    try:
        part = float(share.removesuffix("%")) / (100 if share.endswith("%") else 1)
    except ValueError:
        part = -1.0
    if not colon or not 0 < part <= 1:
        raise ConfigError(
            f"canary {text!r}: allowed: [NAME=]MODEL[@VERSION]:SHARE, with a share such as 0.05 or 5%"
        )
    named = parse_model(model)
    return Named(named.name, named.place, named.version, part)


class Serving:
    """Models that are loaded, and followed; a context, which holds the copies of those that are elsewhere."""

    def __init__(
        self,
        models: Sequence[Named],
        canaries: Sequence[Named] = (),
        *,
        follow: bool = False,
        mapped: bool = False,
        cache: str | None = None,
        gate: Gate | None = None,
        features: Callable[[Mapping[str, Scorer]], Mapping[str, Features]] = lambda scorers: {},
    ) -> None:
        """Name them; nothing is read yet. ``features`` gives, by model that was loaded, what its pipeline adds to
        rows.

        Raises:
            ConfigError: two have one name, or a canary has that of no model.
        """
        names = [model.name for model in models]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"two models would be called {name!r}; give them names: NAME=MODEL")
        for canary in canaries:
            if canary.name not in names:
                raise ConfigError(
                    f"canary {canary.name!r}: there is no model of that name; there are: {', '.join(names)}"
                )
        self._models, self._canaries = models, canaries
        self._follow, self._mapped, self._cache, self._gate = follow, mapped, cache, gate
        self._make_features = features
        self._features: Mapping[str, Features] = {}
        self._stack = contextlib.ExitStack()
        self._followers: list[tuple[Follower, bool]] = []

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *error: object) -> None:
        for follower, _ in self._followers:
            follower.stop()
        for features in set(self._features.values()):
            features.stop()
        self._stack.close()

    def load(
        self,
        say: Callable[[str], None],
        *,
        token: bytes | None = None,
        limits: ServeLimits | None = None,
        access_log: TextIO | None = None,
    ) -> App:
        """The application that serves them.

        Raises:
            ModelError, StorageError: a model is not there, or damaged, or the store cannot be reached.
        """
        scorers = {}
        for model in self._models:
            follower = self._follower(model, canary=False)
            scorers[model.name] = scorer = follower.first(wait=self._follow, say=say)
            say(f"model {model.name}: version {scorer.version}, {scorer.rows:,} features, from {model.place}")
        canaries = {}
        for model in self._canaries:
            scorer = self._follower(model, canary=True).first(wait=self._follow, say=say)
            canaries[model.name] = Canary(scorer=scorer, share=model.share or 0.0)
            say(
                f"canary of {model.name}: version {scorer.version}, from {model.place}, gets "
                f"{model.share:.3g} of the requests"
            )
        self._features = self._make_features(scorers)
        for name, scorer in scorers.items():
            counted = (scorer.manifest.get("lineage") or {}).get("aggregates")
            if counted and name not in self._features:
                say(
                    f"model {name}: was trained with {', '.join(counted)}, which its pipeline counts: without "
                    "--pipeline they are missing, unless requests bring them"
                )
        for follower, _ in self._followers:
            if follower.name in self._features:
                follower.check = self._features[follower.name].check
        for name, canary in canaries.items():
            if name in self._features:
                self._features[name].check(canary.scorer)
        self.app = App(
            scorers,
            canaries=canaries,
            token=token,
            limits=limits,
            access_log=access_log,
            features=self._features,
        )
        return self.app

    async def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Follow, from the loop that serves."""
        for features in set(self._features.values()):
            features.start()
        for follower, canary in self._followers:
            if not self._follow and follower.scorer is not None:
                # What is mapped may be found damaged, and is then made anew; it stays that version.
                follower.version, follower.fixed = int(follower.scorer.version), True
            if self._follow or self._mapped:
                follower.start(
                    loop,
                    functools.partial(self.app.switch, follower.name, canary=canary),
                    functools.partial(loop.call_soon_threadsafe, self.app.refused, follower.name),
                )

    def _follower(self, model: Named, *, canary: bool) -> Follower:
        own = f"{model.name}/canary" if canary else model.name
        remote = is_url(model.place)
        folder = Path(model.place.removeprefix("file://"))
        root = self._own_folder(own) if remote else folder
        versions = RemoteVersions(model.place, root) if remote else LocalVersions(folder)
        mapped = None
        if self._mapped:
            inside = root / "index"
            mapped = (
                inside if self._cache is None and os.access(root, os.W_OK) else self._own_folder(own) / "index"
            )
        loader = Loader(folder=root, mapped=mapped)
        follower = Follower(model.name, versions, loader, version=model.version, gate=self._gate)
        self._followers.append((follower, canary))
        return follower

    def _own_folder(self, name: str) -> Path:
        """For copies and indexes, kept where there is ``cache``."""
        if self._cache is None:
            return Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-serve-")))
        folder = Path(self._cache) / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{folder}: cannot be made: {error.strerror or error}") from error
        return folder
