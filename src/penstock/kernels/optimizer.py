"""The seam between kernels and optimizers: functions of a row, resolved by the type of the hyperparameters.

A kernel receives the hyperparameters as a NamedTuple; its class was registered together with a few plain
functions of scalars, which are compiled into the kernel. Functions passed as arguments would work as well,
but are never cached on disk.
"""

from __future__ import annotations

import hashlib
import inspect
from collections import namedtuple
from collections.abc import Callable, Sequence
from types import CodeType
from typing import Any

import numpy as np
from numba.extending import overload, register_jitable

from penstock.kernels.compile import DISABLE_JIT

__all__ = ["load_state", "register", "scale", "store_state", "update", "weight"]

RowFunctions = tuple[Callable[..., Any], Callable[..., Any], int, Any]
_registered: dict[type, RowFunctions] = {}
_stand_ins: dict[str, type] = {}


def register(
    name: str,
    fields: Sequence[str],
    weight_of: Callable[..., Any],
    update_of: Callable[..., Any],
    states: int,
    scale_of: Callable[..., Any] | None = None,
) -> type:
    """Make the NamedTuple of an optimizer's hyperparameters, and tie its row functions to it.

    The class is named by a digest of the functions' code and of the numbers outside that they use, so that
    kernels compiled for an older version of an edited function are not taken from the cache. (Functions that
    these call are not looked into.)
    """
    digest = hashlib.sha256(repr((list(fields), states)).encode())
    for function in (weight_of, update_of, *([scale_of] if scale_of else [])):
        _digest_code(digest, function.__code__)
        outside = inspect.getclosurevars(function)
        numbers = {**outside.globals, **outside.nonlocals}.items()
        digest.update(repr([n for n in sorted(numbers) if isinstance(n[1], (int, float, np.number))]).encode())
    class_name = f"Hyper_{name}_{digest.hexdigest()[:12]}"
    hyper = globals().get(class_name)
    if hyper is None:
        hyper = globals()[class_name] = _hyper_class(class_name, fields)
        _registered[hyper] = (weight_of, update_of, states, scale_of)
    return hyper


def _digest_code(digest: Any, code: CodeType) -> None:
    digest.update(code.co_code)
    digest.update(repr((code.co_names, code.co_varnames)).encode())
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _digest_code(digest, constant)
        else:
            digest.update(repr(constant).encode())


def _hyper_class(class_name: str, fields: Sequence[str]) -> type:
    hyper: type = namedtuple(class_name, list(fields))  # type: ignore[misc]
    hyper.__module__ = __name__
    return hyper


def __getattr__(name: str) -> type:
    # Numba's cache index names every class that a kernel was ever compiled for, and cannot be read or written
    # while one is missing: a class that this process has not registered is stood in for.
    if not name.startswith("Hyper_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _stand_ins.setdefault(name, _hyper_class(name, []))


def _functions(hyper: Any) -> RowFunctions:
    return _registered[hyper.instance_class]


def weight(hyper: Any, state: Any) -> Any:
    """The weight that a row's state stands for: ``weight((alpha, ...), (z, n)) -> w``."""
    return _registered[type(hyper)][0](hyper, state)


def update(hyper: Any, state: Any, w: Any, gradient: Any) -> Any:
    """The state after a gradient: ``update((alpha, ...), (z, n), w, g) -> (z, n)``."""
    return _registered[type(hyper)][1](hyper, state, w, gradient)


def scale(hyper: Any, state: Any, factor: Any) -> Any:
    """The state after decay by ``factor``: ``scale((alpha, ...), (w, g2), 0.5) -> (w / 2, g2)``."""
    return _registered[type(hyper)][3](hyper, state, factor)


def load_state(hyper: Any, words: Any, at: Any, step: Any) -> Any:
    """``(words[at], words[at + step], ...)``, as many as the optimizer has."""
    return tuple(words[at + s * step] for s in range(_registered[type(hyper)][2]))


def store_state(hyper: Any, words: Any, at: Any, step: Any, state: Any) -> None:
    """The inverse of ``load_state``."""
    for s in range(_registered[type(hyper)][2]):
        words[at + s * step] = state[s]


# Numba demands that an implementation has the signature of its overload, annotations included. LLVM inlines
# them; Numba's own ``inline="always"`` would drop ``store_state`` as a call whose result is not used.
if not DISABLE_JIT:

    @overload(weight)
    def _weight(hyper: Any, state: Any) -> Any:
        compiled = register_jitable(_functions(hyper)[0])

        def call(hyper: Any, state: Any) -> Any:
            return compiled(hyper, state)

        return call

    @overload(update)
    def _update(hyper: Any, state: Any, w: Any, gradient: Any) -> Any:
        compiled = register_jitable(_functions(hyper)[1])

        def call(hyper: Any, state: Any, w: Any, gradient: Any) -> Any:
            return compiled(hyper, state, w, gradient)

        return call

    @overload(scale)
    def _scale(hyper: Any, state: Any, factor: Any) -> Any:
        compiled = register_jitable(_functions(hyper)[3])

        def call(hyper: Any, state: Any, factor: Any) -> Any:
            return compiled(hyper, state, factor)

        return call

    @overload(load_state)
    def _load_state(hyper: Any, words: Any, at: Any, step: Any) -> Any:
        def load1(hyper: Any, words: Any, at: Any, step: Any) -> Any:
            return (words[at],)

        def load2(hyper: Any, words: Any, at: Any, step: Any) -> Any:
            return (words[at], words[at + step])

        def load3(hyper: Any, words: Any, at: Any, step: Any) -> Any:
            return (words[at], words[at + step], words[at + step + step])

        return (load1, load2, load3)[_functions(hyper)[2] - 1]

    @overload(store_state)
    def _store_state(hyper: Any, words: Any, at: Any, step: Any, state: Any) -> Any:
        def store1(hyper: Any, words: Any, at: Any, step: Any, state: Any) -> Any:
            words[at] = state[0]

        def store2(hyper: Any, words: Any, at: Any, step: Any, state: Any) -> Any:
            words[at] = state[0]
            words[at + step] = state[1]

        def store3(hyper: Any, words: Any, at: Any, step: Any, state: Any) -> Any:
            words[at] = state[0]
            words[at + step] = state[1]
            words[at + step + step] = state[2]

        return (store1, store2, store3)[_functions(hyper)[2] - 1]
