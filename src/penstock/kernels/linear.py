"""Logistic regression: the fused per-example ``learn``, ``predict``, and ``gradients`` of a mini-batch.

``learn`` gathers an example's rows into a few contiguous arrays, computes there (which vectorises, and is
exact, as no sum is reordered), and scatters; meanwhile the rows of the next examples are on their way.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from penstock.kernels.compile import inlined, kernel, pointer, prefetch
from penstock.kernels.optimizer import load_state, store_state, update, weight
from penstock.kernels.rows import NOWHERE, ONE, TWO, find, find_or_insert, home, mark, unpack

__all__ = ["PARTS", "Examples", "gradients", "learn", "predict", "predict_pulled", "scratch"]

F0 = np.float32(0)
F1 = np.float32(1)


class Examples(NamedTuple):
    """A ``SparseBatch`` as kernels see it: an empty array where the batch has None."""

    keys: NDArray[np.uint64]
    values: NDArray[np.float32]
    offsets: NDArray[np.int64]
    labels: NDArray[np.float32]
    weights: NDArray[np.float32]


AHEAD = 3
"""Rows are asked for so many examples before they are needed. With 1 the memory answers too late (4.2 ns a feature
instead of 3.6); with more than 3 some have left the first-level cache again."""
SHELVES = 4
"""Examples whose places are known at a time, a power of two > AHEAD: example i has shelf ``i % SHELVES``."""
PARTS = SHELVES + 3
"""u64 of working memory for each key: places, and 5 f32 (weight, term, 3 states)."""


def scratch(width: int) -> NDArray[np.uint64]:
    """Working memory for examples of up to ``width`` keys, one for each thread; stays with the caller.

    Its parts begin at cache lines: vectors across two lines made learning a tenth slower.
    """
    size = PARTS * max(16, -(-width // 16) * 16)
    memory = np.empty(size + 8, np.uint64)
    begin = -memory.ctypes.data % 64 // 8
    return memory[begin : begin + size]


@inlined
def sigmoid(x: Any) -> Any:
    """Logistic function; ``sigmoid(0) == 0.5``."""
    return F1 / (F1 + np.exp(-x))


@inlined
def total(terms: Any, n: Any) -> Any:
    """Sum of the first n terms, in four lanes, always in the same order."""
    a, b, c, d = F0, F0, F0, F0
    quads = n // 4 * 4
    for f in range(0, quads, 4):
        a += terms[f]
        b += terms[f + 1]
        c += terms[f + 2]
        d += terms[f + 3]
    for f in range(quads, n):
        a += terms[f]
    return (a + b) + (c + d)


@inlined
def ask(table: Any, keys: Any, offsets: Any, i: Any, end: Any, places: Any, width: Any) -> None:
    """Ask for the rows of example i, if it is before ``end``, and note where the search for each begins."""
    i_or_last = min(i, end - 1)
    first, shelf = offsets[i_or_last], (i & (SHELVES - 1)) * width
    n = offsets[i_or_last + 1] - first if i < end else 0
    for f in range(n):
        start = home(table, keys[first + f])
        places[shelf + f] = start
        prefetch(table.keys, start)


@inlined
def gather_row(table: Any, hyper: Any, key: Any, places: Any, shelf: Any, state: Any, f: Any, step: Any) -> Any:
    """Find or make the row of a key that was asked for, mark it, copy its state; False if it cannot be made."""
    at = places[shelf + f]
    # Nearly always it is where the search begins, and marked.
    if table.keys[at] != key | ONE:
        at = find_or_insert(table, key, at)
        if at == NOWHERE:
            return False
        places[shelf + f] = at
        mark(table, at)
    row = load_state(hyper, table.words, np.int64(at * TWO + TWO), np.int64(1))
    store_state(hyper, state, f, step, row)
    return True


@kernel
def learn(rows: Any, hyper: Any, batch: Any, begin: int, end: int, memory: Any, out: Any) -> int:
    """Examples ``begin`` to ``end``, one by one: predict (into ``out``), then update; returns how far it came.

    Less than ``end`` says that a segment must grow; the example at which it stopped has changed nothing but
    that some of its rows may exist, marked as changed. ``memory`` is ``scratch(width)``. With SGD of rate 1, no
    rows and one example ``{6: 1}`` of label 1: ``out == [0.5]``, ``6 -> 0.5``.

    McMahan et al. 2013, "Ad Click Prediction", algorithm 1, for any registered optimizer.
    """
    table = unpack(rows)
    keys, offsets, values = pointer(batch.keys), pointer(batch.offsets), pointer(batch.values)
    has_values, has_weights = batch.values.size > 0, batch.weights.size > 0
    width = memory.size // PARTS
    places = pointer(memory)
    floats = memory[SHELVES * width :].view(np.float32)
    w, terms, state = pointer(floats), pointer(floats[width:]), pointer(floats[2 * width :])
    word, step = np.int64(1), np.int64(width)
    for i in range(begin, begin + AHEAD if begin < end else begin):
        ask(table, keys, offsets, i, end, places, width)
    for i in range(begin, end):
        if table.halt[0] != 0:
            return i
        first, shelf = offsets[i], (i & (SHELVES - 1)) * width
        n = offsets[i + 1] - first
        for f in range(n):
            if not gather_row(table, hyper, keys[first + f], places, shelf, state, f, step):
                return i
        for f in range(n):
            w[f] = weight(hyper, load_state(hyper, state, f, step))
        if has_values:
            for f in range(n):
                terms[f] = w[f] * values[first + f]
            margin = total(terms, n)
        else:
            margin = total(w, n)
        # Asked here, the processor does it while it waits for the sum and its exponential: a tenth of all time.
        ask(table, keys, offsets, i + AHEAD, end, places, width)
        p = sigmoid(margin)
        out[i] = p
        gradient = p - batch.labels[i]
        if has_weights:
            gradient *= batch.weights[i]
        if has_values:
            for f in range(n):
                g = gradient * values[first + f]
                store_state(hyper, state, f, step, update(hyper, load_state(hyper, state, f, step), w[f], g))
        else:
            for f in range(n):
                store_state(
                    hyper, state, f, step, update(hyper, load_state(hyper, state, f, step), w[f], gradient)
                )
        for f in range(n):
            row = np.int64(places[shelf + f] * TWO + TWO)
            store_state(hyper, table.words, row, word, load_state(hyper, state, f, step))
    return end


@kernel
def predict(rows: Any, hyper: Any, batch: Any, memory: Any, out: Any) -> None:
    """Probability of a click, ``out`` f32[B]; keys without a row count nothing.

    With one row ``6 -> 0``: ``predict({6: 1}) == [0.5]``.
    """
    table = unpack(rows)
    keys, offsets = pointer(batch.keys), pointer(batch.offsets)
    has_values = batch.values.size > 0
    width, word = memory.size // PARTS, np.int64(1)
    places, terms = pointer(memory), pointer(memory[SHELVES * width :].view(np.float32))
    for i in range(AHEAD if out.size else 0):
        ask(table, keys, offsets, i, out.size, places, width)
    for i in range(out.size):
        first, shelf = offsets[i], (i & (SHELVES - 1)) * width
        n = offsets[i + 1] - first
        ask(table, keys, offsets, i + AHEAD, out.size, places, width)
        for f in range(n):
            at = find(table, keys[first + f], places[shelf + f])
            term = F0
            if at != NOWHERE:
                term = weight(hyper, load_state(hyper, table.words, np.int64(at * TWO + TWO), word))
                if has_values:
                    term *= batch.values[first + f]
            terms[f] = term
        out[i] = sigmoid(total(terms, n))


@kernel
def predict_pulled(pulled: Any, batch: Any, memory: Any, out: Any) -> None:
    """``predict`` with weights ``pulled`` f32[nnz, 1] of the batch's keys, one for each; the same bits.

    ``predict_pulled([[0]], {6: 1}) == [0.5]``.
    """
    offsets, weights = pointer(batch.offsets), pointer(pulled)
    terms = pointer(memory.view(np.float32))
    has_values = batch.values.size > 0
    for i in range(out.size):
        first = offsets[i]
        n = offsets[i + 1] - first
        for f in range(n):
            term = weights[first + f]
            if has_values:
                term *= batch.values[first + f]
            terms[f] = term
        out[i] = sigmoid(total(terms, n))


@kernel
def gradients(pulled: Any, index: Any, batch: Any, memory: Any, out: Any, grads: Any) -> float:
    """Sum of the examples' gradients for each pulled row; returns the sum of their weighted log losses.

    ``pulled`` f32[U, 1] are weights, ``index`` i64[nnz] says which of them each non-zero uses; ``out`` f32[B]
    gets the probabilities, ``grads`` f32[U, 1] (zeros before) the sums, in the order of the examples. With
    ``pulled = [[0]]`` and one example ``{0: 1}`` of label 1: ``grads == [[-0.5]]``, loss ``log 2``.
    """
    terms = pointer(memory.view(np.float32))
    has_values, has_weights = batch.values.size > 0, batch.weights.size > 0
    loss = 0.0
    for i in range(batch.labels.size):
        first = batch.offsets[i]
        n = batch.offsets[i + 1] - first
        for f in range(n):
            term = pulled[index[first + f], 0]
            if has_values:
                term *= batch.values[first + f]
            terms[f] = term
        margin = total(terms, n)
        p = sigmoid(margin)
        out[i] = p
        gradient = p - batch.labels[i]
        # log(1 + exp(-m)) without overflow, for the margin's sign that the label asks for
        m = np.float64(margin) if batch.labels[i] > F0 else -np.float64(margin)
        cost = max(-m, 0.0) + math.log1p(math.exp(-abs(m)))
        if has_weights:
            gradient *= batch.weights[i]
            cost *= np.float64(batch.weights[i])
        loss += cost
        for f in range(n):
            g = gradient
            if has_values:
                g = gradient * batch.values[first + f]
            grads[index[first + f], 0] += g
    return loss
