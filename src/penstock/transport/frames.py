"""Messages as frames of bytes: a fixed prefix, a msgpack header, then the arrays as they lie in memory.

prefix    magic "PSTK", protocol version u16, flags u16 (0), header length u32, payload length u64; little endian
header    the msgpack of a tagged struct, in which an array is [dtype, rows] or [dtype, rows, dim]
payload   the arrays' bytes, one after the other, in the order in which the header names them

Knows nothing of sockets or of what messages mean. Every size is checked before memory is taken for it. There is no
checksum: TCP has one, and TLS a better one.
"""

from __future__ import annotations

import struct
import threading
import typing
from collections.abc import Iterator
from typing import Any, Final, TypeAlias, Union

import msgspec
import numpy as np
from numpy.typing import NDArray

from penstock.errors import FrameError

__all__ = ["PREFIX_NBYTES", "PROTOCOL_VERSION", "Codec", "Part", "check_start", "raw_bytes"]

Part: TypeAlias = memoryview | bytes
"""A piece of a frame: flat bytes."""

MAGIC: Final = b"PSTK"
PROTOCOL_VERSION: Final = 1
"""Of frames and handshake. The first six bytes of a prefix stay where they are in every version."""

_PREFIX = struct.Struct("<4sHHIQ")
PREFIX_NBYTES: Final = _PREFIX.size

_CODES: Final = {
    np.dtype(code): code
    for code in ("|b1", "|i1", "<i2", "<i4", "<i8", "|u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8")
}
_DTYPES: Final = {code: dtype for dtype, code in _CODES.items()}
_TAGS_SHOWN = 12


def check_start(start: bytes | bytearray | memoryview) -> None:
    """Check the first bytes of a frame, however few there are.

    Raises:
        FrameError: they are not ours.
    """
    seen = bytes(start[: len(MAGIC)])
    if seen[:2] in (b"\x15\x03", b"\x16\x03"):
        raise FrameError("speaks TLS, and this side does not")
    if not MAGIC.startswith(seen):
        raise FrameError(f"not a Penstock frame: it starts with {seen!r}, not {MAGIC!r}")


def raw_bytes(array: NDArray[Any]) -> memoryview:
    """View the memory of a C-contiguous array that is not empty."""
    return array.data.cast("B")


class Codec:
    """Turns messages of the given types to frames, and back; may be used by any number of threads.

    Types are ``msgspec.Struct`` with ``tag=True``. A field annotated ``NDArray[np.float32]`` (bool, any integer or
    float), alone, with ``None``, or in a dict, list or tuple, travels as raw bytes; arrays have one or two
    dimensions.
    """

    def __init__(
        self, *types: type[msgspec.Struct], header_limit: int = 1 << 20, payload_limit: int = 1 << 30
    ) -> None:
        """Take the types that may be sent and received, and the largest header and payload in bytes.

        Raises:
            TypeError: there is no type, or one has no tag, or an array whose elements cannot be sent.
        """
        if not types:
            raise TypeError("a codec needs at least one message type")
        for kind in types:
            if kind.__struct_config__.tag is None:
                raise TypeError(f"{kind.__name__}: a message type needs tag=True")
        self.header_limit = header_limit
        self.payload_limit = payload_limit
        self._tags = [str(kind.__struct_config__.tag) for kind in types]
        self._fields = {kind: tuple(_array_fields(kind)) for kind in types}
        self._local = _Local(Union[types])  # noqa: UP007  (types are known at run time only)

    def encode(self, message: msgspec.Struct) -> list[Part]:
        """Return the frame: prefix and header in one piece, then one piece for each array that is not empty.

        Pieces view the arrays' own memory, so these must not change until the frame is sent; an array that is not
        C-contiguous is copied.

        Raises:
            FrameError: a type that the codec does not have, an array of another dtype than annotated, or a limit.
        """
        fields = self._fields.get(type(message))
        if fields is None:
            raise FrameError(f"{type(message).__name__}: unknown message type; known: {self._known()}")
        for name, dtype in fields:
            _check_dtypes(message, name, dtype, getattr(message, name))
        local = self._local
        parts: list[Part] = []
        local.parts = parts
        local.left = self.payload_limit
        try:
            header = local.encoder.encode(message)
        except (ValueError, TypeError, OverflowError) as error:
            raise FrameError(f"{type(message).__name__}: {error}") from error
        finally:
            local.parts = []
        if len(header) > self.header_limit:
            raise FrameError(
                f"{type(message).__name__}: a header of {len(header):,} bytes; at most {self.header_limit:,}"
            )
        payload_nbytes = self.payload_limit - local.left
        prefix = _PREFIX.pack(MAGIC, PROTOCOL_VERSION, 0, len(header), payload_nbytes)
        parts.insert(0, prefix + header)
        return parts

    def read_prefix(self, prefix: bytes | bytearray | memoryview) -> tuple[int, int]:
        """Return the sizes of header and payload in bytes.

        Raises:
            FrameError: these are not the first bytes of a frame, or of another version, or a size is above its
                limit.
        """
        check_start(prefix)
        _, version, flags, header_nbytes, payload_nbytes = _PREFIX.unpack(prefix)
        if version != PROTOCOL_VERSION:
            raise FrameError(f"speaks protocol {version}, this one {PROTOCOL_VERSION}")
        if flags:
            raise FrameError(f"flags must be 0, got {flags:#06x}")
        if header_nbytes > self.header_limit:
            raise FrameError(f"a header of {header_nbytes:,} bytes; at most {self.header_limit:,}")
        if payload_nbytes > self.payload_limit:
            raise FrameError(f"a payload of {payload_nbytes:,} bytes; at most {self.payload_limit:,}")
        return header_nbytes, payload_nbytes

    def decode_header(
        self, header: bytes | bytearray | memoryview, payload_nbytes: int
    ) -> tuple[Any, list[NDArray[Any]]]:
        """Return the message, and its non-empty arrays, whose memory the payload is to fill in this order.

        Never takes more memory for arrays than ``payload_nbytes``.

        Raises:
            FrameError: an unknown message type, a wrong field, dtype or shape, trailing bytes, or arrays that
                do not add up to the payload.
        """
        local = self._local
        arrays: list[NDArray[Any]] = []
        local.arrays = arrays
        local.left = payload_nbytes
        try:
            message = local.decoder.decode(header)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, MemoryError) as error:
            raise FrameError(f"bad header: {self._explain(error)}") from error
        finally:
            local.arrays = []
        if local.left:
            raise FrameError(
                f"{type(message).__name__}: the payload has {payload_nbytes:,} bytes, "
                f"its arrays {payload_nbytes - local.left:,}"
            )
        return message, arrays

    def decode(self, frame: bytes | bytearray | memoryview) -> Any:
        """Return the message of one whole frame; its arrays are copies.

        Raises:
            FrameError: as ``read_prefix`` and ``decode_header``, or too few or too many bytes.
        """
        view = memoryview(frame).cast("B")
        if len(view) < PREFIX_NBYTES:
            raise FrameError(f"a frame of {len(view)} bytes; at least {PREFIX_NBYTES}")
        header_nbytes, payload_nbytes = self.read_prefix(view[:PREFIX_NBYTES])
        at = PREFIX_NBYTES + header_nbytes
        if len(view) != at + payload_nbytes:
            raise FrameError(f"a frame of {len(view):,} bytes; its prefix says {at + payload_nbytes:,}")
        message, arrays = self.decode_header(view[PREFIX_NBYTES:at], payload_nbytes)
        for array in arrays:
            raw_bytes(array)[:] = view[at : at + array.nbytes]
            at += array.nbytes
        return message

    def _known(self) -> str:
        shown = ", ".join(self._tags[:_TAGS_SHOWN])
        return shown if len(self._tags) <= _TAGS_SHOWN else f"{shown} and {len(self._tags) - _TAGS_SHOWN} more"

    def _explain(self, error: Exception) -> str:
        """The library's words, and the known types where the type is unknown; one line whatever the bytes were."""
        text = str(error) or type(error).__name__
        if text.startswith("Invalid value") and text.endswith("at `$.type`"):
            text = f"unknown message type {text.removeprefix('Invalid value ')}; known: {self._known()}"
        return text if text.isprintable() else repr(text)


class _Local(threading.local):
    """What one thread needs while it encodes or decodes: hooks have no other way to hand arrays over."""

    def __init__(self, union: Any) -> None:
        self.parts: list[Part] = []
        self.arrays: list[NDArray[Any]] = []
        self.left = 0
        """Bytes of payload that may still be used."""
        self.encoder = msgspec.msgpack.Encoder(enc_hook=self._describe)
        self.decoder = msgspec.msgpack.Decoder(union, dec_hook=self._allocate)

    def _describe(self, array: object) -> tuple[str | int, ...]:
        if not isinstance(array, np.ndarray):
            raise TypeError(f"a {type(array).__name__} cannot be sent")
        code = _CODES.get(array.dtype)
        if code is None:
            raise TypeError(f"an array of {array.dtype} cannot be sent")
        if array.ndim not in (1, 2):
            raise ValueError(f"an array of {array.ndim} dimensions cannot be sent; 1 or 2 are allowed")
        self.left -= array.nbytes
        if self.left < 0:
            raise ValueError("its arrays are larger than the payload's limit")
        if array.size:
            self.parts.append(raw_bytes(np.ascontiguousarray(array)))
        return (code, *array.shape)

    def _allocate(self, annotation: Any, described: object) -> NDArray[Any]:
        wanted = _annotated_dtype(annotation)
        if not isinstance(described, list) or len(described) not in (2, 3):
            raise ValueError("expected an array as [dtype, rows] or [dtype, rows, dim]")
        code, *shape = described
        dtype = _DTYPES.get(code) if isinstance(code, str) else None
        if dtype is None:
            raise ValueError(f"unknown dtype {code!r:.40}")
        if dtype != wanted:
            raise ValueError(f"expected an array of {wanted}, got {dtype}")
        nbytes = dtype.itemsize
        for length in shape:
            if type(length) is not int or length < 0:
                raise ValueError(f"bad shape {shape!r:.80}")
            nbytes *= length
        # One empty dimension must not excuse an absurd other one, which NumPy would refuse in words of its own.
        if nbytes > self.left or (nbytes == 0 and max(shape) >= 1 << 48):
            raise ValueError(
                f"an array of shape {shape!r:.80} does not fit the {self.left:,} bytes of payload left"
            )
        self.left -= nbytes
        array = np.empty(shape, dtype)
        if nbytes:
            self.arrays.append(array)
        return array


def _annotated_dtype(annotation: Any) -> np.dtype[Any]:
    """Return float32 of ``NDArray[np.float32]``.

    Raises:
        TypeError: the annotation is no array of one known dtype.
    """
    dtype = _ANNOTATED.get(annotation)
    if dtype is None:
        array = _expanded(annotation)
        arguments = typing.get_args(array)
        scalar = typing.get_args(arguments[-1]) if typing.get_origin(array) is np.ndarray else ()
        if not scalar or not isinstance(scalar[0], type) or np.dtype(scalar[0]) not in _CODES:
            raise TypeError(f"expected NDArray[np.float32] or the like, got {annotation}")
        dtype = _ANNOTATED[annotation] = np.dtype(scalar[0])
    return dtype


def _expanded(annotation: Any) -> Any:
    """What an alias stands for: ``NDArray[...]`` is one by PEP 695 from NumPy 2.5 on."""
    value = getattr(typing.get_origin(annotation), "__value__", None)
    return annotation if value is None else value[typing.get_args(annotation)]


_ANNOTATED: dict[Any, np.dtype[Any]] = {}


def _array_fields(kind: type[msgspec.Struct]) -> Iterator[tuple[str, np.dtype[Any]]]:
    """Yield the fields of a struct that have arrays, with the arrays' dtype."""
    for name, annotation in typing.get_type_hints(kind).items():
        if name not in kind.__struct_fields__:
            continue
        todo = [annotation]
        while todo:
            inner = _expanded(todo.pop())
            if inner is np.ndarray or typing.get_origin(inner) is np.ndarray:
                try:
                    yield name, _annotated_dtype(inner)
                except TypeError as error:
                    raise TypeError(f"{kind.__name__}.{name}: {error}") from error
            else:
                todo.extend(typing.get_args(inner))


def _check_dtypes(message: msgspec.Struct, name: str, dtype: np.dtype[Any], value: Any) -> None:
    """Find a wrong dtype where it was made, not at the peer, which could only close the connection."""
    if isinstance(value, np.ndarray):
        if value.dtype != dtype:
            raise FrameError(f"{type(message).__name__}.{name}: expected an array of {dtype}, got {value.dtype}")
    elif isinstance(value, dict):
        for each in value.values():
            _check_dtypes(message, name, dtype, each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            _check_dtypes(message, name, dtype, each)
    elif value is not None:
        raise FrameError(
            f"{type(message).__name__}.{name}: expected an array of {dtype}, got {type(value).__name__}"
        )
