"""Frames: what is sent is what comes, and nothing else is taken for a frame."""

from __future__ import annotations

import struct
import threading
import tracemalloc
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from penstock.errors import FrameError
from penstock.transport import PREFIX_NBYTES, Codec

DTYPES = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]


class Push(msgspec.Struct, tag=True):
    table: int
    keys: NDArray[np.uint64]
    grads: NDArray[np.float32]


class Mixed(msgspec.Struct, tag=True):
    flags: NDArray[np.bool_] | None = None
    dense: dict[str, NDArray[np.float64]] = {}
    small: list[NDArray[np.int8]] = []
    text: str = ""


CODEC = Codec(Push, Mixed)
EMPTY = np.zeros(0, np.float32)


def frame_of(codec: Codec, message: msgspec.Struct) -> bytes:
    return b"".join(codec.encode(message))


def a_push() -> Push:
    return Push(3, np.arange(5, dtype=np.uint64), np.linspace(0, 1, 10, dtype=np.float32).reshape(5, 2))


def raw_frame(header: object, payload: bytes = b"", announced: int | None = None) -> bytes:
    """A frame whose header is anything; as an independent implementation would write it."""
    packed = header if isinstance(header, bytes) else msgspec.msgpack.encode(header)
    nbytes = len(payload) if announced is None else announced
    return b"PSTK" + struct.pack("<HHIQ", 1, 0, len(packed), nbytes) + packed + payload


def same(one: Any, other: Any) -> bool:
    """Equal, to the bits and the types of arrays."""
    if isinstance(one, np.ndarray):
        alike = one.dtype == other.dtype and one.shape == other.shape
        return alike and np.ascontiguousarray(one).tobytes() == np.ascontiguousarray(other).tobytes()
    if isinstance(one, msgspec.Struct):
        return type(one) is type(other) and same(msgspec.structs.asdict(one), msgspec.structs.asdict(other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[each], other[each]) for each in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def arrays(dtype: str) -> st.SearchStrategy[NDArray[Any]]:
    shapes = hnp.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=5)
    return hnp.arrays(dtype, shapes).flatmap(lambda a: st.sampled_from([a, a.T, a[::2]]))


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_round_trip_of_each_dtype(dtype: str, data: st.DataObject) -> None:
    annotation = NDArray[np.dtype(dtype).type]  # type: ignore[misc]
    kind = msgspec.defstruct("Holder", [("array", annotation), ("more", annotation)], tag=True)
    message = kind(data.draw(arrays(dtype)), data.draw(arrays(dtype)))
    codec = Codec(kind)
    assert same(codec.decode(frame_of(codec, message)), message)


@settings(max_examples=50, deadline=None)
@given(
    st.builds(
        Mixed,
        flags=st.none() | arrays("?"),
        dense=st.dictionaries(st.text(max_size=3), arrays("f8"), max_size=3),
        small=st.lists(arrays("i1"), max_size=3),
        text=st.text(max_size=5),
    )
)
@example(Mixed(dense={"a": np.zeros((0, 3)), "b": np.ones(2)}))
def test_round_trip_of_arrays_in_containers(message: Mixed) -> None:
    assert same(CODEC.decode(frame_of(CODEC, message)), message)


def test_arrays_are_sent_from_where_they_are() -> None:
    message = a_push()
    _, keys, grads = CODEC.encode(message)
    assert np.shares_memory(np.frombuffer(keys, np.uint64), message.keys)
    assert np.shares_memory(np.frombuffer(grads, np.float32), message.grads)


def test_empty_arrays_have_no_part() -> None:
    assert len(CODEC.encode(Push(1, np.zeros(0, np.uint64), np.zeros((0, 8), np.float32)))) == 1


def test_header_is_as_documented() -> None:
    message = a_push()
    header = {"type": "Push", "table": 3, "keys": ["<u8", 5], "grads": ["<f4", 5, 2]}
    assert frame_of(CODEC, message) == raw_frame(header, message.keys.tobytes() + message.grads.tobytes())


def test_payload_fills_arrays_in_order() -> None:
    frame = frame_of(CODEC, a_push())
    header_nbytes, payload_nbytes = CODEC.read_prefix(frame[:PREFIX_NBYTES])
    message, to_fill = CODEC.decode_header(frame[PREFIX_NBYTES : PREFIX_NBYTES + header_nbytes], payload_nbytes)
    assert [each.dtype.str for each in to_fill] == ["<u8", "<f4"]
    assert to_fill[0] is message.keys and to_fill[1] is message.grads
    assert sum(each.nbytes for each in to_fill) == payload_nbytes


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (Push(1, np.zeros(1, np.int64), EMPTY), r"Push.keys: expected an array of uint64, got int64"),
        (Push(1, np.zeros(1, ">u8"), EMPTY), r"Push.keys: expected an array of uint64, got >u8"),
        (Push(1, [1], EMPTY), r"Push.keys: expected an array of uint64, got int"),
        (Push(1, np.zeros(1, np.uint64), np.zeros((1, 1, 1), np.float32)), "3 dimensions cannot be sent; 1 or 2"),
        (Push(1, np.zeros(1, np.uint64), np.float32(1)), r"Push.grads: expected an array of float32, got float32"),
        (Mixed(dense={"w": EMPTY}), r"Mixed.dense: expected an array of float64, got float32"),
        (Mixed(small=[np.zeros(1, np.int8), EMPTY]), r"Mixed.small: expected an array of int8, got float32"),
        (Mixed(text=object()), "a object cannot be sent"),
    ],
)
def test_what_cannot_be_sent_is_refused_where_it_was_made(message: msgspec.Struct, reason: str) -> None:
    with pytest.raises(FrameError, match=reason):
        CODEC.encode(message)


def test_unknown_type_is_refused_on_both_sides() -> None:
    class Stranger(msgspec.Struct, tag=True):
        pass

    with pytest.raises(FrameError, match="Stranger: unknown message type; known: Push, Mixed"):
        CODEC.encode(Stranger())
    with pytest.raises(FrameError, match=r"unknown message type 'Stranger'.*known: Push, Mixed"):
        CODEC.decode(frame_of(Codec(Stranger), Stranger()))


def header(**changes: Any) -> dict[str, Any]:
    return {"type": "Push", "table": 1, "keys": ["<u8", 1], "grads": ["<f4", 1]} | changes


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request", r"not a Penstock frame: it starts with b'HTTP'"),
        (b"\x16\x03\x01\x02\x00" + bytes(20), "speaks TLS, and this side does not"),
        (b"PSTK" + struct.pack("<HHIQ", 2, 0, 0, 0), "speaks protocol 2, this one 1"),
        (b"PSTK" + struct.pack("<HHIQ", 1, 4, 0, 0), "flags must be 0, got 0x0004"),
        (b"PSTK" + struct.pack("<HHIQ", 1, 0, 1 << 21, 0), "a header of 2,097,152 bytes; at most 1,048,576"),
        (
            b"PSTK" + struct.pack("<HHIQ", 1, 0, 1, 1 << 31),
            "payload of 2,147,483,648 bytes; at most 1,073,741,824",
        ),
        (raw_frame({}), "missing required field `type`"),
        (raw_frame(b""), "bad header"),
        (raw_frame(header(keys=["<f4", 1]), bytes(8)), r"expected an array of uint64, got float32 - at `\$.keys`"),
        (raw_frame(header(keys=["O", 1]), bytes(12)), r"unknown dtype 'O' - at `\$.keys`"),
        (raw_frame(header(keys=[["<u8"], 1]), bytes(12)), r"unknown dtype .* - at `\$.keys`"),
        (raw_frame(header(keys=["<u8"]), bytes(12)), r"expected an array as \[dtype, rows\].* - at `\$.keys`"),
        (raw_frame(header(keys=["<u8", 1, 1, 1]), bytes(12)), r"expected an array as .* - at `\$.keys`"),
        (raw_frame(header(keys="abc"), bytes(12)), r"expected an array as .* - at `\$.keys`"),
        (raw_frame(header(keys=["<u8", -1]), bytes(12)), r"bad shape \[-1\] - at `\$.keys`"),
        (raw_frame(header(keys=["<u8", -1, -1]), bytes(12)), r"bad shape"),
        (raw_frame(header(keys=["<u8", True]), bytes(12)), r"bad shape"),
        (raw_frame(header(keys=["<u8", 1.0]), bytes(12)), r"bad shape"),
        (raw_frame(header(keys=["<u8", 2]), bytes(12)), r"shape \[2\] does not fit the 12 bytes .* at `\$.keys`"),
        (raw_frame(header(keys=["<u8", 2**62, 4]), bytes(12)), r"does not fit"),
        (raw_frame(header(keys=["<u8", 0, 2**63]), bytes(4)), r"does not fit"),
        (raw_frame(header(), bytes(16)), "the payload has 16 bytes, its arrays 12"),
        (raw_frame(header(), bytes(11)), r"does not fit the 3 bytes of payload left - at `\$.grads`"),
        (raw_frame(header(table="x"), bytes(12)), r"Expected `int`, got `str` - at `\$.table`"),
        (raw_frame(msgspec.msgpack.encode(header()) + b"!", bytes(12)), "trailing characters"),
        (raw_frame(b"\x81\xa4type\xa4\xff\xfe\xfd\xfc"), "bad header"),
        (raw_frame(b"\x82\xa4type\xa4Push\xa1z" + b"\x91" * 100_000), "recursion"),
        (raw_frame(header(), bytes(12)) + b"!", "a frame of .* bytes; its prefix says"),
    ],
)
def test_bad_frames_are_refused_with_a_reason(frame: bytes, reason: str) -> None:
    with pytest.raises(FrameError, match=reason) as caught:
        CODEC.decode(frame)
    assert "\n" not in str(caught.value)


def test_a_frame_cut_anywhere_is_refused() -> None:
    frame = frame_of(CODEC, a_push())
    for end in range(len(frame)):
        with pytest.raises(FrameError):
            CODEC.decode(frame[:end])


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 7)), min_size=1, max_size=4),
)
def test_flipped_bits_are_refused_or_give_a_message(flips: list[tuple[int, int]]) -> None:
    frame = bytearray(frame_of(CODEC, a_push()))
    for at, bit in flips:
        frame[at % len(frame)] ^= 1 << bit
    try:
        message = CODEC.decode(frame)
    except FrameError:
        return
    assert isinstance(message, (Push, Mixed))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_random_headers_are_refused(noise: bytes) -> None:
    with pytest.raises(FrameError):
        CODEC.decode(raw_frame(noise))


@pytest.mark.parametrize(
    "frame",
    [
        raw_frame(header(keys=["<u8", 1 << 40]), bytes(12)),
        raw_frame(b"\x82\xa4type\xa5Mixed\xa5small\xdd\xff\xff\xff\xff"),
        raw_frame(b"\x82\xa4type\xa5Mixed\xa5dense\xdf\xff\xff\xff\xff"),
        raw_frame(b"\x82\xa4type\xa5Mixed\xa4text\xdb\xff\xff\xff\xff"),
    ],
)
def test_announced_sizes_take_no_memory(frame: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(FrameError):
            CODEC.decode(frame)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_limits_hold_for_what_is_sent() -> None:
    codec = Codec(Push, Mixed, header_limit=100, payload_limit=100)
    with pytest.raises(FrameError, match="Push: its arrays are larger than the payload's limit"):
        codec.encode(Push(1, np.zeros(9, np.uint64), np.zeros(9, np.float32)))
    with pytest.raises(FrameError, match=r"Mixed: a header of .* bytes; at most 100"):
        codec.encode(Mixed(text="x" * 100))
    codec.encode(Push(1, np.zeros(8, np.uint64), np.zeros(9, np.float32)))


def test_types_are_checked_when_the_codec_is_made() -> None:
    class Untagged(msgspec.Struct):
        pass

    class Unknown(msgspec.Struct, tag=True):
        texts: dict[str, NDArray[np.str_]]

    class Anything(msgspec.Struct, tag=True):
        array: NDArray[Any]

    with pytest.raises(TypeError, match="at least one"):
        Codec()
    with pytest.raises(TypeError, match="Untagged: a message type needs tag=True"):
        Codec(Untagged)
    with pytest.raises(TypeError, match=r"Unknown.texts: expected NDArray"):
        Codec(Unknown)
    with pytest.raises(TypeError, match=r"Anything.array: expected NDArray"):
        Codec(Anything)


def test_threads_share_a_codec() -> None:
    wrong: list[object] = []

    def work(seed: int) -> None:
        for n in range(300):
            message = Push(seed, np.full(n % 7, seed, np.uint64), np.full((n % 7, 2), seed, np.float32))
            if not same(CODEC.decode(frame_of(CODEC, message)), message):
                wrong.append(message)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
