"""How kernels are compiled and cached, and the few instructions that Numba has no name for.

Numba does not notice an edited callee in another file, so the cache folder is named by a hash of all
sources that can end up in a kernel. With ``NUMBA_DISABLE_JIT=1`` everything here runs as plain Python.
"""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

__all__ = [
    "DISABLE_JIT",
    "atomic_add",
    "atomic_or",
    "cache_folder",
    "compare_and_swap",
    "inlined",
    "is_compiled",
    "keep",
    "kernel",
    "load8",
    "pointer",
    "prefetch",
    "store8",
]

F = TypeVar("F", bound=Callable[..., Any])

# Numba's settings are made at run time, and are not known to type checkers.
_config: Any = numba.config
DISABLE_JIT: bool = bool(_config.DISABLE_JIT)

_SOURCES = ("kernels", "optim")


@functools.cache
def cache_folder() -> Path:
    """Folder of compiled kernels: ``PENSTOCK_CACHE_DIR``, else the user's cache, else a temporary one."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256(numba.__version__.encode())
    for room in _SOURCES:
        for source in sorted((package / room).glob("*.py")):
            digest.update(source.read_bytes())
    base = os.environ.get("PENSTOCK_CACHE_DIR")
    root = Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "penstock"
    folder = root / f"kernels-{digest.hexdigest()[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:
        mine = Path(tempfile.gettempdir()) / f"penstock-{os.getuid()}"
        mine.mkdir(exist_ok=True, mode=0o700)
        # Compiled code is loaded from there, so it must not be where others can write.
        if mine.lstat().st_uid != os.getuid() or mine.lstat().st_mode & 0o022:
            mine = Path(tempfile.mkdtemp(prefix="penstock-"))
        folder = mine / folder.name
        folder.mkdir(exist_ok=True, mode=0o700)
    return folder


def is_compiled(name: str) -> bool:
    """Whether this machine has compiled a kernel of this version before: ``is_compiled("linear.learn")``."""
    return next(cache_folder().rglob(f"{name}-*.nbi"), None) is not None


def kernel(function: F) -> F:
    """Compile on first call, release the GIL, keep the machine code on disk.

    Division by zero gives inf as in NumPy: the check that Python semantics need costs more than the division.
    """
    return _jit(function, nogil=True, cache=True)


def inlined(function: F) -> F:
    """A part of kernels, inlined into each; pass it scalars and pointers (see ``pointer``)."""
    return _jit(function, nogil=True, inline="always")


def _jit(function: F, **options: Any) -> F:
    # The folder is read when a function is decorated; other users of Numba in this process keep theirs.
    before = _config.CACHE_DIR
    _config.CACHE_DIR = str(cache_folder())
    try:
        compiled: F = numba.njit(error_model="numpy", **options)(function)
    finally:
        _config.CACHE_DIR = before
    return compiled


if DISABLE_JIT:

    def pointer(array: Any) -> Any:
        """The array itself, flat."""
        if isinstance(array, np.ndarray) and not array.flags.c_contiguous:
            raise TypeError("pointer() needs a contiguous array")
        return array.reshape(-1)

    def keep(array: Any) -> None:
        """Do nothing: Python keeps what a view refers to."""

    def prefetch(at: Any, index: Any) -> None:
        """Do nothing: there is no cache to warm."""

    def compare_and_swap(at: Any, index: Any, old: Any, new: Any) -> Any:
        """Single-threaded stand-in."""
        found = at[index]
        if found == old:
            at[index] = new
        return found

    def atomic_add(at: Any, index: Any, value: Any) -> Any:
        """Single-threaded stand-in."""
        found = at[index]
        at[index] = found + value
        return found

    def atomic_or(at: Any, index: Any, value: Any) -> Any:
        """Single-threaded stand-in."""
        found = at[index]
        at[index] = found | value
        return found

    def load8(at: Any, index: Any) -> Any:
        """Little-endian u64 at any byte offset."""
        return at[index : int(index) + 8].view(np.uint64)[0]

    def store8(at: Any, index: Any, value: Any) -> None:
        """The inverse of ``load8``."""
        at[index : int(index) + 8].view(np.uint64)[0] = value

else:

    @intrinsic
    def pointer(typingctx: Any, array: Any) -> Any:
        """The address of a contiguous array's items, to be indexed like the array.

        An array that is passed to an inlined function has its references counted, by an atomic instruction
        each time; a pointer has not. The caller keeps the array; a kernel that allocates one itself calls
        ``keep`` at its end. An array with gaps between its items does not compile.
        """
        if isinstance(array, types.Array) and array.layout != "C":
            raise TypingError("pointer() needs a contiguous array")

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return context.make_array(signature.args[0])(context, builder, args[0]).data

        cpointer: Any = types.CPointer
        return cpointer(array.dtype)(array), codegen

    @intrinsic
    def keep(typingctx: Any, array: Any) -> Any:
        """Use the array, for nothing: a kernel's own is freed after its last use, and a pointer is none."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return context.get_dummy_value()

        return types.void(array), codegen

    @intrinsic
    def prefetch(typingctx: Any, at: Any, index: Any) -> Any:
        """Ask for the cache line of ``at[index]``, to be written soon (LLVM ``llvm.prefetch``)."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            address = builder.bitcast(builder.gep(args[0], [args[1]]), cgutils.voidptr_t)
            i32 = ir.IntType(32)
            get_function: Any = cgutils.get_or_insert_function
            function = get_function(
                builder.module,
                ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, i32, i32, i32]),
                "llvm.prefetch.p0",
            )
            builder.call(function, [address, i32(1), i32(3), i32(1)])
            return context.get_dummy_value()

        return types.void(at, index), codegen

    @intrinsic
    def compare_and_swap(typingctx: Any, at: Any, index: Any, old: Any, new: Any) -> Any:
        """``at[index]`` becomes ``new`` if it is ``old``; returns what it was."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            address = builder.gep(args[0], [args[1]])
            result = builder.cmpxchg(address, args[2], args[3], "acq_rel", "acquire")
            return builder.extract_value(result, 0)

        return at.dtype(at, index, at.dtype, at.dtype), codegen

    def _atomic(operation: str, at: Any, index: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.atomic_rmw(operation, builder.gep(args[0], [args[1]]), args[2], "acq_rel")

        return at.dtype(at, index, at.dtype), codegen

    @intrinsic
    def atomic_add(typingctx: Any, at: Any, index: Any, value: Any) -> Any:
        """Add to ``at[index]``; returns what it was."""
        return _atomic("add", at, index)

    @intrinsic
    def atomic_or(typingctx: Any, at: Any, index: Any, value: Any) -> Any:
        """Set bits of ``at[index]``; returns what it was."""
        return _atomic("or", at, index)

    @intrinsic
    def load8(typingctx: Any, at: Any, index: Any) -> Any:
        """Little-endian u64 at any byte offset; the caller has checked the end."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            wide = builder.bitcast(builder.gep(args[0], [args[1]]), ir.IntType(64).as_pointer())
            return builder.load(wide, align=1)

        return types.uint64(at, index), codegen

    @intrinsic
    def store8(typingctx: Any, at: Any, index: Any, value: Any) -> Any:
        """The inverse of ``load8``."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            wide = builder.bitcast(builder.gep(args[0], [args[1]]), ir.IntType(64).as_pointer())
            builder.store(args[2], wide, align=1)
            return context.get_dummy_value()

        return types.void(at, index, types.uint64), codegen
