"""The seam between kernels and row functions: naming, caching, and the layout of states in a row."""

from __future__ import annotations

import pickle
import types

import numpy as np
import pytest

from penstock.kernels import optimizer
from penstock.kernels.compile import kernel
from penstock.kernels.optimizer import load_state, register, store_state, update, weight


def first(h, state):
    return state[0]


def subtract(h, state, w, g):
    return (w - h.rate * g,)


def test_update_and_weight_are_those_of_the_class():
    hyper = register("probe", ["rate"], first, subtract, 1)
    h = hyper(rate=2.0)
    assert h._fields == ("rate",)
    assert weight(h, (5.0,)) == 5.0
    assert update(h, (5.0,), 5.0, 1.5) == (2.0,)


def test_the_same_functions_give_the_same_class():
    assert register("probe", ["rate"], first, subtract, 1) is register("probe", ["rate"], first, subtract, 1)


def class_name(update_of) -> str:
    return register("probe", ["rate", "speed"], first, update_of, 1).__name__


def test_an_edited_row_function_has_another_class_name():
    # Numba's cache on disk goes by the class name alone, so each of these edits must change it.
    names = [
        class_name(lambda h, state, w, g: (w - h.rate * g,)),
        class_name(lambda h, state, w, g: (w + h.rate * g,)),  # an instruction
        class_name(lambda h, state, w, g: (w - 2.0 * g,)),  # a constant
        class_name(lambda h, state, w, g: (w - 3.0 * g,)),  # another constant
        class_name(lambda h, state, w, g: (w - h.speed * g,)),  # another field
        class_name(lambda h, state, g, w: (w - h.rate * g,)),  # arguments changed places
        class_name(lambda h, state, w, g: (max([x - g for x in (w, 1.0)]),)),
        class_name(lambda h, state, w, g: (max([x - g for x in (w, 2.0)]),)),  # an inner constant
    ]
    assert len(set(names)) == len(names)
    assert class_name(lambda h, state, w, g: (w - h.rate * g,)) == names[0]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (1.0, 1.5), (np.float32(1), np.float32(2))])
def test_an_edited_constant_outside_of_the_function_has_another_class_name(before, after):
    # Numba compiles globals and closed-over values in, so a cached kernel would go on with the old one.
    code = (lambda h, state, w, g: (w - RATE * g,)).__code__  # noqa: F821
    names = [class_name(types.FunctionType(code, {"RATE": rate})) for rate in (before, after, before)]
    assert names[0] == names[2] != names[1]

    def closed_over(rate):
        return lambda h, state, w, g: (w - rate * g,)

    assert class_name(closed_over(before)) != class_name(closed_over(after))


def test_fields_number_of_states_weight_function_and_name_are_in_the_class_name():
    def doubled(h, state):
        return 2 * state[0]

    names = {
        register("probe", ["rate"], first, subtract, 1).__name__,
        register("probe", ["rate", "l2"], first, subtract, 1).__name__,
        register("probe", ["rate"], first, subtract, 2).__name__,
        register("probe", ["rate"], doubled, subtract, 1).__name__,
        register("other", ["rate"], first, subtract, 1).__name__,
    }
    assert len(names) == 5
    assert all(name.startswith(("Hyper_probe_", "Hyper_other_")) for name in names)


def test_classes_can_be_found_by_name_as_the_cache_index_does():
    hyper = register("probe", ["rate"], first, subtract, 1)
    assert getattr(optimizer, hyper.__name__) is hyper
    assert pickle.loads(pickle.dumps(hyper)) is hyper


def test_a_class_of_another_process_is_stood_in_for():
    stand_in = optimizer.Hyper_gone_0123456789ab
    assert optimizer.Hyper_gone_0123456789ab is stand_in
    assert pickle.loads(pickle.dumps(stand_in)) is stand_in


def test_other_names_are_not_stood_in_for():
    with pytest.raises(AttributeError, match="no attribute 'Hypo'"):
        optimizer.Hypo  # noqa: B018


@kernel
def add_to_states(hyper, words, at, step):
    state = load_state(hyper, words, at, step)
    store_state(hyper, words, at, step, update(hyper, state, weight(hyper, state), np.float32(10)))


def add1(h, state, w, g):
    return (w + g,)


def add2(h, state, w, g):
    return (w + g, state[1] + 2 * g)


def add3(h, state, w, g):
    return (w + g, state[1] + 2 * g, state[2] + 3 * g)


@pytest.mark.parametrize(("function", "states"), [(add1, 1), (add2, 2), (add3, 3)])
def test_states_stand_step_words_apart(function, states):
    hyper = register(f"add{states}", ["rate"], first, function, states)(np.float32(1))
    words = np.arange(8, dtype=np.float32)
    add_to_states(hyper, words, 1, 2)
    expected = np.arange(8, dtype=np.float32)
    for s in range(states):
        expected[1 + 2 * s] += 10 * (s + 1)
    assert words.tolist() == expected.tolist()


@pytest.mark.parametrize("states", [1, 2, 3])
def test_load_and_store_are_inverse_as_plain_python(states):
    hyper = register(f"add{states}", ["rate"], first, (add1, add2, add3)[states - 1], states)(1.0)
    words = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    state = load_state(hyper, words, 1, 2)
    assert state == (1.0, 3.0, 5.0)[:states]
    copy = list(words)
    store_state(hyper, copy, 1, 2, state)
    assert copy == words
