"""The hash in NumPy is the documented one, and that of the kernels."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.features.categories import BIAS, Categories, key_of_missing, key_of_number, seed_of
from penstock.kernels import hashing as kernels
from penstock.score import hashing

integers = st.integers(-(2**65), 2**65).map(str) | st.integers(-99, 99).map(str)
almost_integers = st.sampled_from(
    ["017", "-017", "+17", "17.0", " 17", "--17", "1-7", "-0", "-", "0", "00", "-1", "1e1", "/", ":", "٣", "1\0"]
)
texts = st.text(max_size=30) | integers | almost_integers
SEED = np.uint64(0x1234567890ABCDEE)


@settings(deadline=None, max_examples=200)
@given(st.lists(texts.filter(bool), max_size=9))
def test_texts_hash_as_documented_and_as_in_kernels(oracle, found):
    hashed = hashing.text_hashes([text.encode() for text in found])
    assert hashed.tolist() == [oracle.text_hash(text.encode()) for text in found]
    keys = hashing.seal(hashing.seeds(["column"])[0], hashed)
    np.testing.assert_array_equal(keys, Categories(["column"]).keys("column", pa.array(found, pa.string())))


def test_what_is_at_the_edge_of_an_integer(oracle):
    edges = [2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64 + 17, 10**18, 10**19, 0, -1]
    found = [str(edge).encode() for edge in edges]
    assert hashing.text_hashes(found).tolist() == [oracle.text_hash(text) for text in found]


def test_no_text_is_no_hash():
    assert hashing.text_hashes([]).tolist() == []
    assert len(hashing.text_hashes([b"", b"a", b""])) == 3


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(max_size=20), max_size=5))
def test_seeds_and_keys_of_columns_are_those_of_the_encoder(names):
    assert hashing.seeds(names).tolist() == [int(seed_of(name)) for name in names]
    assert hashing.missing_keys(names).tolist() == [int(key_of_missing(name)) for name in names]
    assert hashing.number_keys(names).tolist() == [int(key_of_number(name)) for name in names]


def test_the_bias_is_that_of_the_encoder():
    assert hashing.BIAS == BIAS


def test_a_key_is_even_and_not_0():
    # What mixes to 0 or 1, by going through the mixing backwards: found by x ^ seed = 0.
    assert hashing.seal(SEED, np.array([SEED])).tolist() == [2]
    many = hashing.seal(SEED, np.arange(1000, dtype=np.uint64))
    assert (many % 2 == 0).all() and (many != 0).all()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(0, 2**64 - 1), min_size=3, max_size=3), min_size=1, max_size=4))
def test_crosses_hash_as_in_kernels(parts):
    array = np.array(parts, np.uint64)
    target = kernels.Target(np.arange(3), np.empty(3, np.uint64), np.empty(0, np.float32))
    kernels.cross_keys(array, SEED, target, 0)
    np.testing.assert_array_equal(hashing.seal(SEED, hashing.cross_hashes(array)), target.keys)
