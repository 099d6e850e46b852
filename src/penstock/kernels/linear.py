"""Logistic regression: the fused per-example ``learn``, ``predict``, and ``gradients`` of a mini-batch.

``learn`` gathers an example's rows into a few contiguous arrays, computes there (which vectorises, and is
exact, as no sum is reordered), and scatters; meanwhile the rows of the next example are on their way.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from penstock.kernels.compile import inlined, kernel, prefetch
from penstock.kernels.optimizer import load_state, store_state, update, weight
from penstock.kernels.rows import NOWHERE, TWO, find, find_or_insert, home, mark

__all__ = ["gradients", "learn", "predict"]

F0 = np.float32(0)
F1 = np.float32(1)


@inlined
def sigmoid(x: Any) -> Any:
    """Logistic function; ``sigmoid(0) == 0.5``."""
    return F1 / (F1 + np.float32(math.exp(-x)))


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
def widest(offsets: Any) -> Any:
    """Largest number of keys of an example."""
    width = np.int64(0)
    for i in range(offsets.size - 1):
        width = max(width, offsets[i + 1] - offsets[i])
    return width


@inlined
def prefetch_example(rows: Any, keys: Any, offsets: Any, i: Any, homes: Any, shelf: Any) -> None:
    """Ask for the rows of example i, and keep where the search for each begins."""
    begin = offsets[i]
    for f in range(offsets[i + 1] - begin):
        start = home(rows, keys[np.uint64(begin + f)])
        homes[np.uint64(shelf + f)] = start
        prefetch(rows.keys, start)


@kernel
def learn(
    rows: Any,
    hyper: Any,
    keys: Any,
    values: Any,
    offsets: Any,
    labels: Any,
    weights: Any,
    begin: int,
    end: int,
    out: Any,
) -> int:
    """Examples ``begin`` to ``end``, one by one: predict (into ``out``), then update; returns how far it came.

    Less than ``end`` says that a segment must grow; the example at which it stopped has changed nothing but
    that some of its rows may exist. ``values`` and ``weights`` may be None, for all ones. With SGD of rate 1,
    no rows and one example ``{6: 1}`` of label 1: ``out == [0.5]``, ``6 -> 0.5``.

    McMahan et al. 2013, "Ad Click Prediction", algorithm 1, for any registered optimizer.
    """
    width = widest(offsets)
    homes = np.empty(2 * width, np.uint64)
    places = np.empty(width, np.uint64)
    state = np.empty(3 * width, np.float32)
    w = np.empty(width, np.float32)
    terms = np.empty(width, np.float32)
    step = np.uint64(width)
    one_word = np.uint64(1)
    shelf = np.int64(0)
    if begin < end:
        prefetch_example(rows, keys, offsets, begin, homes, shelf)
    for i in range(begin, end):
        first = offsets[i]
        n = offsets[i + 1] - first
        next_shelf = width - shelf
        if i + 1 < end:
            prefetch_example(rows, keys, offsets, i + 1, homes, next_shelf)
        if rows.halt[0] != 0:
            return i
        for f in range(n):
            at = find_or_insert(rows, keys[np.uint64(first + f)], homes[np.uint64(shelf + f)])
            if at == NOWHERE:
                return i
            places[np.uint64(f)] = at
            store_state(
                hyper,
                state,
                np.uint64(f),
                step,
                load_state(hyper, rows.words, at * TWO + TWO, one_word),
            )
        for f in range(n):
            w[f] = weight(hyper, load_state(hyper, state, np.uint64(f), step))
        if values is None:
            margin = total(w, n)
        else:
            for f in range(n):
                terms[f] = w[f] * values[np.uint64(first + f)]
            margin = total(terms, n)
        p = sigmoid(margin)
        out[i] = p
        gradient = p - labels[i]
        if weights is not None:
            gradient *= weights[i]
        for f in range(n):
            g = gradient
            if values is not None:
                g = gradient * values[np.uint64(first + f)]
            now = load_state(hyper, state, np.uint64(f), step)
            store_state(hyper, state, np.uint64(f), step, update(hyper, now, w[f], g))
        for f in range(n):
            at = places[np.uint64(f)]
            mark(rows, at)
            store_state(
                hyper,
                rows.words,
                at * TWO + TWO,
                one_word,
                load_state(hyper, state, np.uint64(f), step),
            )
        shelf = next_shelf
    return end


@kernel
def predict(rows: Any, hyper: Any, keys: Any, values: Any, offsets: Any, out: Any) -> None:
    """Probability of a click, ``out`` f32[B]; keys without a row count nothing.

    With one row ``6 -> 0``: ``predict({6: 1}) == [0.5]``.
    """
    width = widest(offsets)
    homes = np.empty(2 * width, np.uint64)
    terms = np.empty(width, np.float32)
    shelf = np.int64(0)
    one_word = np.uint64(1)
    if out.size:
        prefetch_example(rows, keys, offsets, 0, homes, shelf)
    for i in range(out.size):
        first = offsets[i]
        n = offsets[i + 1] - first
        next_shelf = width - shelf
        if i + 1 < out.size:
            prefetch_example(rows, keys, offsets, i + 1, homes, next_shelf)
        for f in range(n):
            at = find(rows, keys[np.uint64(first + f)], homes[np.uint64(shelf + f)])
            term = F0
            if at != NOWHERE:
                term = weight(hyper, load_state(hyper, rows.words, at * TWO + TWO, one_word))
                if values is not None:
                    term *= values[np.uint64(first + f)]
            terms[f] = term
        out[i] = sigmoid(total(terms, n))
        shelf = next_shelf


@kernel
def gradients(
    pulled: Any, index: Any, values: Any, offsets: Any, labels: Any, weights: Any, out: Any, grads: Any
) -> float:
    """Sum of the examples' gradients for each pulled row; returns the sum of their weighted log losses.

    ``pulled`` f32[U, 1] are weights, ``index`` i64[nnz] says which of them each non-zero uses; ``out`` f32[B]
    gets the probabilities, ``grads`` f32[U, 1] (zeros before) the sums, in the order of the examples. With
    ``pulled = [[0]]`` and one example ``{0: 1}`` of label 1: ``grads == [[-0.5]]``, loss ``log 2``.
    """
    terms = np.empty(widest(offsets), np.float32)
    loss = 0.0
    for i in range(labels.size):
        first = offsets[i]
        n = offsets[i + 1] - first
        for f in range(n):
            term = pulled[index[first + f], 0]
            if values is not None:
                term *= values[first + f]
            terms[f] = term
        margin = total(terms, n)
        p = sigmoid(margin)
        out[i] = p
        gradient = p - labels[i]
        # log(1 + exp(-m)) without overflow, for the margin's sign that the label asks for
        m = np.float64(margin) if labels[i] > F0 else -np.float64(margin)
        cost = max(-m, 0.0) + math.log1p(math.exp(-abs(m)))
        if weights is not None:
            gradient *= weights[i]
            cost *= np.float64(weights[i])
        loss += cost
        for f in range(n):
            g = gradient
            if values is not None:
                g = gradient * values[first + f]
            grads[index[first + f], 0] += g
    return loss
