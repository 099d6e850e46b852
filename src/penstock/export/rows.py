"""What leaves with a model: the rows that count, and where they came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from penstock.batch import Floats, Keys
from penstock.errors import ConfigError, ModelError
from penstock.features import FeaturePlan
from penstock.models import Linear, Model
from penstock.version import __version__

__all__ = ["checked", "header_of", "nonzero_rows"]


def checked(model: Model) -> tuple[Linear, FeaturePlan]:
    """The model and its plan, if it is one that can be exported.

    Raises:
        ConfigError: it is of another kind, or has not been fitted.
    """
    # A class that is made from it may score in another way.
    if type(model) is not Linear:
        raise ConfigError(f"a model of kind {model.kind!r} cannot be exported; allowed: linear")
    if model.plan is None:
        raise ConfigError("a model that has not been fitted cannot be exported: it knows no columns yet")
    return model, model.plan


def nonzero_rows(model: Linear) -> tuple[Keys, Floats]:
    """Keys u64[n], rising, and weights f32[n] of the rows whose weight is not 0: others change no score.

    Raises:
        ModelError: a weight is not finite.
    """
    keys, weights = [np.empty(0, np.uint64)], [np.empty(0, np.float32)]
    for segment in range(model.table.segments):
        found = model.table.items(segment)[0]
        values = model.table.pull(found)[:, 0]
        if not np.isfinite(values).all():
            key = int(found[~np.isfinite(values)][0])
            raise ModelError(f"the weight of key {key:#018x} is not finite; such a model cannot be exported")
        keys.append(found[values != 0])
        weights.append(values[values != 0])
    return np.concatenate(keys), np.concatenate(weights)


def header_of(model: Linear, plan: FeaturePlan, manifest: Mapping[str, Any] | None) -> dict[str, Any]:
    """What an exported file says of its model: plan, version, lineage, metrics, as JSON can hold it."""
    manifest = manifest or {}
    header = {
        "features": plan.to_dict(),
        "model": {"kind": model.kind},
        "version": manifest.get("version", 0),
        "created": manifest.get("created"),
        "code_version": manifest.get("code_version", __version__),
        "lineage": model.metadata.get("lineage"),
        "metrics": model.metadata.get("metrics"),
    }
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(header))
    return plain
