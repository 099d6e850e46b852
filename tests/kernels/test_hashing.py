"""Key kernels against the documented hash on Python integers (the ``oracle`` of conftest.py)."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.kernels import hashing

SEED, VALUE_KEY, MISSING = 0x1234567890ABCDEE, 0x1111111111111110, 0x2222222222222222
NO_BITS = np.empty(0, np.uint8)
NO_VALUES = np.empty(0, np.float32)


NONE_ABSENT = np.empty((0, 0), np.bool_)


def column() -> hashing.Column:
    return hashing.Column(np.uint64(SEED), np.uint64(MISSING))


def number_columns(*places: int, how=hashing.HOW_STANDARD, mean=0.0, scale=1.0) -> hashing.NumberColumns:
    n = len(places)
    keys = (np.full(n, key, np.uint64) for key in (VALUE_KEY, SEED, MISSING))
    return hashing.NumberColumns(*keys, np.full(n, how), np.full(n, mean), np.full(n, scale), np.array(places))


def hash_numbers(
    numbers: list[float], batch: hashing.Target, absent: list[bool] | None = None, **constants
) -> int:
    mask = NONE_ABSENT if absent is None else np.array([absent])
    return hashing.number_keys(np.array([numbers]), mask, number_columns(0, **constants), batch)


def target(n: int, width: int = 1, valued: bool = False) -> hashing.Target:
    values = np.full(n * width, 7, np.float32) if valued else NO_VALUES
    return hashing.Target(np.arange(n) * width, np.zeros(n * width, np.uint64), values)


def bitmap_of(valid: list[bool], bit: int) -> np.ndarray:
    return np.packbits(np.array([False] * bit + valid), bitorder="little")


def hash_texts(texts: list[bytes], *, before: bytes = b"", after: bytes = b"", wide: bool = False) -> list[int]:
    data = np.frombuffer(before + b"".join(texts) + after, np.uint8)
    offsets = np.cumsum([len(before), *map(len, texts)]).astype(np.int64 if wide else np.int32)
    batch = target(len(texts))
    hashing.text_keys(data, offsets, NO_BITS, 0, column(), batch, 0)
    return batch.keys.tolist()


def hash_integers(numbers: list[int]) -> list[int]:
    batch = target(len(numbers))
    hashing.integer_keys(np.array(numbers, np.int64), NO_BITS, 0, column(), batch, 0)
    return batch.keys.tolist()


def test_the_example_of_text_keys_in_its_docstring(oracle):
    assert hash_texts([b"a", b"", b"17"]) == [
        oracle.seal(SEED, oracle.text_hash(b"a")),
        MISSING,
        hash_integers([17])[0],
    ]


def test_keys_never_change(oracle):
    # Models on disk hold these. A change of any is a new FeaturePlan.version.
    pinned = {
        b"a": 0x2B7701D36E849E9C,
        b"penstock": 0x1A7D583C742F503A,
        b"penstocks": 0x7296FB534B59A660,
        b"sixteen bytes ok": 0x0FF0E9FC41DECE7E,
        b"caf\xc3\xa9 au lait, 3 euros": 0xEFEB381B5764A5B8,
        b"017": 0xB194A864C6AB44A6,
    }
    assert dict(zip(pinned, hash_texts(list(pinned)), strict=True)) == pinned
    integers = {
        0: 0xB2138310C81DBFE0,
        1: 0xC27B7A862A1E5A84,
        -1: 0x5604B8D007339CC8,
        17: 0x3DB755F40BF0167E,
        2**31: 0x96EF08F055DB4F1C,
        2**63 - 1: 0x7DDA8061334079B2,
        -(2**63): 0x34F2F8312F3EFA96,
    }
    assert dict(zip(integers, hash_integers(list(integers)), strict=True)) == integers


@settings(deadline=None, max_examples=80)
@given(
    texts=st.lists(st.one_of(st.binary(max_size=30), st.integers().map(lambda i: str(i).encode())), max_size=8),
    before=st.binary(max_size=9),
    after=st.binary(max_size=9),
    wide=st.booleans(),
)
def test_texts_hash_as_documented_wherever_they_stand(texts, before, after, wide, oracle):
    expected = [oracle.seal(SEED, oracle.text_hash(text)) if text else MISSING for text in texts]
    assert hash_texts(texts, before=before, after=after, wide=wide) == expected


@settings(deadline=None, max_examples=50)
@given(numbers=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=8))
def test_integers_hash_as_documented_and_as_their_text(numbers, oracle):
    keys = hash_integers(numbers)
    assert keys == [oracle.seal(SEED, oracle.integer_hash(number)) for number in numbers]
    assert keys == hash_texts([str(number).encode() for number in numbers])


def test_integers_at_the_edge_of_19_digits_hash_as_their_text():
    edges = [10**17, 10**18 - 1, 10**18, 2**63 - 1, -(10**18), -(2**63)]
    assert hash_integers(edges) == hash_texts([str(edge).encode() for edge in edges])


def test_what_is_not_a_canonical_integer_is_another_value():
    texts = [b"17", b"017", b"+17", b"17.0", b" 17", b"17 ", b"-17", b"--17", b"1-7", b"-0", b"0", b"00", b"-"]
    texts += [
        b"-017",
        b"1e1",
        b"9223372036854775808",
        b"-9223372036854775809",
        b"18446744073709551633",
        b"/",
        b":",
    ]
    keys = hash_texts(texts)
    assert len(set(keys)) == len(texts)
    # 18446744073709551633 is 17 in 64 bits: a parser that wraps would take it for 17.
    assert not set(keys[1:]) & set(hash_integers([17]))


def test_texts_that_differ_only_in_length_or_zero_bytes_differ():
    texts = [b"\0" * n for n in range(1, 20)] + [b"a" + b"\0" * n for n in range(20)]
    assert len(set(hash_texts(texts))) == len(texts)


def test_validity_bits_start_at_the_bit_given(oracle):
    valid = [True, False, True, True, False, True, False, False, True, True, False]
    for bit in (0, 1, 5, 8, 13):
        bits = bitmap_of(valid, bit)
        batch = target(len(valid))
        hashing.integer_keys(np.arange(len(valid)), bits, bit, column(), batch, 0)
        assert batch.keys.tolist() == [
            oracle.seal(SEED, oracle.integer_hash(i)) if ok else MISSING for i, ok in enumerate(valid)
        ]
        data = np.frombuffer(b"abcdefghijk", np.uint8)
        hashing.text_keys(data, np.arange(12, dtype=np.int32), bits, bit, column(), batch, 0)
        assert [key == MISSING for key in batch.keys.tolist()] == [not ok for ok in valid]


def test_each_kernel_writes_its_column_alone():
    for c in range(3):
        batch = target(2, width=3, valued=True)
        hashing.integer_keys(np.array([1, 2]), NO_BITS, 0, column(), batch, c)
        assert np.flatnonzero(batch.keys).tolist() == [c, 3 + c]
        assert (batch.values == 7).all()  # the value 1 of a category is the caller's to write
        hashing.number_keys(np.array([[1.5, 2.5]]), NONE_ABSENT, number_columns(c), batch)
        assert np.flatnonzero(batch.values != 7).tolist() == [c, 3 + c]
        hashing.constant_keys(np.uint64(4), batch, c)
        assert batch.keys[c::3].tolist() == [4, 4]


def test_dictionary_columns_are_gathered_from_their_own_part_of_the_known_keys():
    known = np.array([10, 11, 12, 20, 21], np.uint64)
    batch = target(3, width=4)
    indices = np.array([[2, 0, 0], [0, 1, 0]], np.int32)
    assert hashing.gather_keys(indices, known, np.array([0, 3, 5]), np.array([3, 1]), batch) == -1
    assert batch.keys.reshape(3, 4).tolist() == [[0, 20, 0, 12], [0, 21, 0, 10], [0, 20, 0, 10]]


@pytest.mark.parametrize("bad", [2, -1, 10**9, -(10**9)])
def test_an_index_outside_of_its_dictionary_is_not_followed(bad):
    indices = np.array([[2, 0], [0, bad]], np.int32)
    places = np.array([0, 1])
    assert (
        hashing.gather_keys(indices, np.arange(5, dtype=np.uint64), np.array([0, 3, 5]), places, target(2, 2)) == 1
    )


def test_numbers_as_values_are_standardised():
    batch = target(3, valued=True)
    numbers = [10.0, math.nan, 7.0]  # what lies under a null does not matter
    assert hash_numbers(numbers, batch, [False, True, False], mean=8.0, scale=0.5) == -1
    assert batch.keys.tolist() == [VALUE_KEY, MISSING, VALUE_KEY]
    assert batch.values.tolist() == [1.0, 1.0, -0.5]


def test_several_columns_of_numbers_stand_in_their_places():
    batch = target(2, width=3, valued=True)
    columns = number_columns(2, 0)._replace(keys=np.array([4, 6], np.uint64), mean=np.array([1.0, 0.0]))
    assert hashing.number_keys(np.array([[1.0, 2.0], [5.0, 6.0]]), NONE_ABSENT, columns, batch) == -1
    assert batch.keys.tolist() == [6, 0, 4, 6, 0, 4]
    assert batch.values.tolist() == [5, 7, 0, 6, 7, 1]


@pytest.mark.parametrize("how", [hashing.HOW_STANDARD, hashing.HOW_LOG])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_number_that_is_not_finite_is_named(how, bad):
    batch = target(4, width=2, valued=True)
    numbers = np.array([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, bad, bad]])
    assert hashing.number_keys(numbers, NONE_ABSENT, number_columns(0, 1, how=how), batch) == 4 + 2
    assert hash_numbers([1.0, 2.0, bad, 1.0], target(4, valued=True), how=how) == 2


@settings(deadline=None, max_examples=50)
@given(x=st.floats(allow_nan=False, allow_infinity=False), per_octave=st.integers(1, 8))
def test_log_buckets_hash_as_signed_integers(x, per_octave):
    batch = target(1, valued=True)
    assert hash_numbers([x], batch, how=hashing.HOW_LOG, scale=float(per_octave)) == -1
    bucket = math.floor(math.log2(1 + abs(x)) * per_octave + 0.5)
    assert batch.keys.tolist() == hash_integers([-bucket if x < 0 else bucket])
    assert batch.values.tolist() == [1]


def test_log_buckets_by_hand():
    batch = target(6)
    hash_numbers([0.0, 1.0, 3.0, 7.0, -7.0, 1023.0], batch, how=hashing.HOW_LOG, scale=2.0)
    assert batch.keys.tolist() == hash_integers([0, 2, 4, 6, -6, 20])


def test_the_order_of_cross_parts_matters_and_keys_are_as_documented(oracle):
    parts = np.array([[10, 20, 10], [20, 10, 30]], np.uint64)
    batch = target(3)
    hashing.cross_keys(parts, np.uint64(SEED), batch, 0)
    expected = []
    for a, b in parts.T.tolist():
        hashed = oracle.mix((oracle.mix(a) + b) & (1 << 64) - 1)
        expected.append(oracle.seal(SEED, hashed))
    assert batch.keys.tolist() == expected
    assert len(set(expected)) == 3


def test_the_example_of_distinct_in_lists_in_its_docstring():
    keys, lengths = np.array([8, 6, 8], np.uint64), np.zeros(1, np.int64)
    hashing.distinct_in_lists(np.array([0, 3]), keys, lengths)
    assert (keys[:2].tolist(), lengths.tolist()) == ([8, 6], [2])


@settings(deadline=None, max_examples=60)
@given(
    lists=st.lists(
        st.one_of(
            st.lists(st.integers(1, 9), max_size=12),
            st.lists(st.integers(1, 200), min_size=60, max_size=90),
        ),
        max_size=5,
    )
)
def test_each_list_keeps_its_distinct_keys(lists):
    offsets = np.cumsum([0, *map(len, lists)])
    keys = np.array([2 * key for keys in lists for key in keys], np.uint64)
    lengths = np.full(len(lists), -1)
    hashing.distinct_in_lists(offsets, keys, lengths)
    for i, before in enumerate(lists):
        after = keys[offsets[i] : offsets[i] + lengths[i]].tolist()
        in_order = list(dict.fromkeys(2 * key for key in before))
        assert after == (in_order if len(before) <= 64 else sorted(in_order))


@pytest.mark.parametrize("has_values", [False, True])
def test_lists_are_copied_behind_what_is_there(has_values):
    batch = target(3, width=4, valued=True)
    begins = np.array([1, 4, 10])
    list_keys = np.array([2, 4, 6, 8, 10], np.uint64)
    list_values = np.array([0.5, 1.5, 2.5, 3.5, 4.5], np.float32) if has_values else NO_VALUES
    # Lists are [2, 4 (dropped)], [] and [8, 10].
    hashing.copy_lists(np.array([0, 2, 3, 5]), np.array([1, 0, 2]), list_keys, list_values, batch, begins)
    assert batch.keys.tolist() == [0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 8, 10]
    assert batch.values[[1, 10, 11]].tolist() == ([0.5, 3.5, 4.5] if has_values else [1, 1, 1])
    assert (np.delete(batch.values, [1, 10, 11]) == 7).all()
    assert begins.tolist() == [2, 4, 12]


OVER_READ = """
import ctypes, mmap
import numpy as np
from penstock.kernels import hashing

page = mmap.PAGESIZE
memory = mmap.mmap(-1, 2 * page)
data = np.frombuffer(memory, np.uint8)
data.flags.writeable or exit("not writeable")
data[:] = np.arange(2 * page) % 251
address = data.ctypes.data
assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + page), page, 0) == 0
u0 = np.uint64(0)
column = hashing.Column(u0, u0)
for end in range(page - 9, page + 1):
    for length in range(1, 30):
        for text in (data[:page], np.full(page, 55, np.uint8)):
            batch = hashing.Target(np.zeros(1, np.int64), np.zeros(1, np.uint64), np.empty(0, np.float32))
            offsets = np.array([end - length, end], np.int32)
            hashing.text_keys(text, offsets, np.empty(0, np.uint8), 0, column, batch, 0)
print("no over-read")
"""


def test_no_byte_behind_the_data_is_read():
    # The page behind the data may not be read: the process would die by a signal.
    done = subprocess.run([sys.executable, "-c", OVER_READ], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("no over-read\n", 0), done.stderr


def many_keys(n_columns: int, n_values: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    found = []
    texts = [f"v{i}".encode() for i in range(n_values)]
    data = np.frombuffer(b"".join(texts), np.uint8)
    offsets = np.cumsum([0, *map(len, texts)]).astype(np.int32)
    for seed in rng.integers(1, 2**62, n_columns, dtype=np.uint64).tolist():
        mine = column()._replace(seed=np.uint64(2 * seed))
        batch = target(n_values)
        hashing.integer_keys(np.arange(n_values), NO_BITS, 0, mine, batch, 0)
        found.append(batch.keys.copy())
        hashing.text_keys(data, offsets, NO_BITS, 0, mine, batch, 0)
        found.append(batch.keys)
    return np.concatenate(found)


def test_keys_of_small_integers_and_short_texts_are_distinct_balanced_and_spread():
    keys = many_keys(40, 20_000)
    assert len(np.unique(keys)) == len(keys)
    assert not (keys & np.uint64(1)).any()
    for bit in range(1, 64):
        share = np.count_nonzero(keys >> np.uint64(bit) & np.uint64(1)) / len(keys)
        assert 0.495 < share < 0.505, f"bit {bit} is set in {share:.1%} of the keys"


@pytest.mark.parametrize("step", [1, 1024, 2**32])
def test_sequential_integers_spread_evenly_over_segments(step):
    n = 102_400
    batch = target(n)
    hashing.integer_keys(np.arange(n) * step, NO_BITS, 0, column(), batch, 0)
    for bits in (batch.keys >> np.uint64(54), (batch.keys >> np.uint64(1)) & np.uint64(1023)):
        counts = np.bincount(bits.astype(np.int64), minlength=1024)
        chi2 = ((counts - n / 1024) ** 2 / (n / 1024)).sum()
        # 1023 degrees of freedom: mean 1023, deviation 45; five deviations either way.
        assert 800 < chi2 < 1250


def test_one_bit_of_the_value_changes_half_of_the_key():
    base = np.random.default_rng(5).integers(0, 2**62, 2000)
    batch = target(len(base))
    hashing.integer_keys(base, NO_BITS, 0, column(), batch, 0)
    before = batch.keys.copy()
    for bit in range(63):
        hashing.integer_keys(base ^ (1 << bit), NO_BITS, 0, column(), batch, 0)
        flipped = np.unpackbits((before ^ batch.keys).view(np.uint8)).mean() * 64 / 63
        assert 0.48 < flipped < 0.52, f"bit {bit} of the value changes {flipped:.1%} of the key"


@pytest.mark.parametrize("bit", [0, 3])
def test_texts_of_many_columns_have_the_keys_of_each(bit: int) -> None:
    texts = [b"a", b"", b"17", b"-3", b"017", b"longer than eight", b"x" * 40, b"", b"17"]
    valid = [True, True, True, True, True, True, False, False, True]
    data = np.frombuffer(b"".join(texts), np.uint8)
    offsets = np.cumsum([0, *map(len, texts)]).astype(np.int32)
    bits = bitmap_of(valid, bit)
    seeds, missing = np.array([SEED, 99, SEED], np.uint64), np.array([MISSING, 4, 6], np.uint64)
    keys = np.empty((3, 3), np.uint64)
    hashing.many_text_keys(data, offsets, bits, bit, hashing.TextColumns(seeds, missing), keys)
    for j in range(3):
        batch = target(3)
        one = hashing.Column(seeds[j], missing[j])
        hashing.text_keys(data, offsets[3 * j : 3 * j + 4], bits, bit + 3 * j, one, batch, 0)
        assert keys[j].tolist() == batch.keys.tolist()
    assert keys[2].tolist()[:2] == [6, 6] and keys[0, 1] == MISSING
