"""What an optimizer is: hyperparameters for people, and functions of scalars for the kernels.

``weight(h, state) -> w`` says which weight a row's state stands for, ``update(h, state, w, g) -> state`` how a
gradient changes it; ``scale`` lets a weight decay, for those who ask. They see only ``h`` (the hyperparameters,
f32) and f32 scalars: no array, no attribute. Only an optimizer's name crosses a wire or stands in a model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np

from penstock.errors import ConfigError

__all__ = ["Optimizer", "optimizer_from_dict", "register_optimizer"]

_LARGEST = float(np.finfo(np.float32).max)

_by_name: dict[str, type[Optimizer]] = {}
_hyper_classes: dict[type[Optimizer], Any] = {}

C = TypeVar("C", bound="type[Optimizer]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Base of optimizers: a frozen keyword-only dataclass of numbers, registered under a name.

    An optimizer of one's own::

        @ps.register_optimizer
        @dataclass(frozen=True, kw_only=True)
        class SignSGD(ps.Optimizer):
            name: ClassVar[str] = "sign-sgd"
            states: ClassVar[tuple[str, ...]] = ("w",)
            alpha: float = 0.01

            @staticmethod
            def weight(h, state):
                return state[0]

            @staticmethod
            def update(h, state, w, g):
                return (w - h.alpha * np.sign(g),)

    A new row's states are all 0.
    """

    name: ClassVar[str]
    states: ClassVar[tuple[str, ...]]
    """Names of a row's f32 states, 1 to 3; columns of a saved model."""

    @staticmethod
    def weight(h: Any, state: tuple[Any, ...]) -> Any:
        """The weight that a state stands for."""
        raise NotImplementedError

    @staticmethod
    def update(h: Any, state: tuple[Any, ...], w: Any, g: Any) -> tuple[Any, ...]:
        """The state after gradient ``g``; ``w`` is ``weight(h, state)``."""
        raise NotImplementedError

    @staticmethod
    def scale(h: Any, state: tuple[Any, ...], factor: Any) -> tuple[Any, ...]:
        """The state after its weight has decayed to ``factor`` times what it was.

        This one is for optimizers whose first state is ``w``; others bring their own, or cannot decay.
        """
        return (state[0] * factor, *state[1:])

    @classmethod
    def can_scale(cls) -> bool:
        """Whether ``scale`` is for this optimizer's states."""
        return cls.states[0] == "w" or cls.scale is not Optimizer.scale

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = field.metadata.get("more_than", None)
            allowed = "a finite number" + ("" if least is None else f" > {least}")
            if least is None and field.metadata.get("least") is not None:
                allowed = f"a finite number >= {field.metadata['least']}"
            ok = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST
            if ok and least is not None:
                ok = float(np.float32(value)) > least
            elif ok and field.metadata.get("least") is not None:
                ok = value >= field.metadata["least"]
            if not ok:
                raise ConfigError(f"optimizer {self.name}: {field.name} must be {allowed}, got {value!r}")

    def hyper(self) -> Any:
        """The hyperparameters as kernels take them: a NamedTuple of f32."""
        fields = [field.name for field in dataclasses.fields(self)]
        return _hyper_class(type(self))(**{name: np.float32(getattr(self, name)) for name in fields})

    def to_dict(self) -> dict[str, Any]:
        """Name and hyperparameters, for a manifest or a job file."""
        return {"name": self.name, **dataclasses.asdict(self)}


def more_than(least: float, default: float) -> Any:
    """A hyperparameter that must be greater than ``least``."""
    return dataclasses.field(default=default, metadata={"more_than": least})


def at_least(least: float, default: float) -> Any:
    """A hyperparameter that must be ``least`` or more."""
    return dataclasses.field(default=default, metadata={"least": least})


def _hyper_class(cls: type[Optimizer]) -> Any:
    if cls not in _hyper_classes:
        # Numba is imported when an optimizer first meets a table, not with the package.
        from penstock.kernels.optimizer import register

        names = [field.name for field in dataclasses.fields(cls)]
        name = cls.name.replace("-", "_")
        _hyper_classes[cls] = register(name, names, cls.weight, cls.update, len(cls.states), cls.scale)
    return _hyper_classes[cls]


def register_optimizer(cls: C) -> C:
    """Make an optimizer known by its name; a decorator, above ``@dataclass``.

    Raises:
        ConfigError: no name, 0 or more than 3 states, or the name of another optimizer.
    """
    name = getattr(cls, "name", None)
    states = getattr(cls, "states", ())
    if not name or not isinstance(name, str) or not name.replace("-", "_").isidentifier():
        raise ConfigError(f"{cls.__name__}.name must be a word of letters, digits and '-', got {name!r}")
    if not 1 <= len(states) <= 3:
        raise ConfigError(f"optimizer {name}: states must be 1 to 3 names, got {states!r}")
    other = _by_name.get(name)
    if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ConfigError(f"optimizer {name!r} is already registered by {other.__module__}.{other.__qualname__}")
    _by_name[name] = cls
    return cls


def optimizer_from_dict(spec: Mapping[str, Any]) -> Optimizer:
    """The optimizer that ``to_dict`` described.

    Raises:
        ConfigError: an unknown name or hyperparameter; the message lists the known ones.
    """
    given = dict(spec)
    name = given.pop("name", None)
    cls = _by_name.get(str(name))
    if cls is None:
        raise ConfigError(f"optimizer {name!r} is not known; allowed: {', '.join(sorted(_by_name))}")
    known = [field.name for field in dataclasses.fields(cls)]
    for key in given:
        if key not in known:
            raise ConfigError(f"optimizer {name}: unknown hyperparameter {key!r}; allowed: {', '.join(known)}")
    return cls(**given)
