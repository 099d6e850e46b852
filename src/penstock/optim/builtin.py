"""FTRL-Proximal, AdaGrad and SGD. Each function follows its paper's equation on f32 scalars."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from penstock.optim.base import Optimizer, at_least, more_than, register_optimizer

__all__ = ["FTRL", "SGD", "AdaGrad"]


@register_optimizer
@dataclass(frozen=True, kw_only=True)
class FTRL(Optimizer):
    """Follow The Regularised Leader, proximal, with a learning rate per coordinate.

    McMahan et al. 2013, "Ad Click Prediction: a View from the Trenches", algorithm 1. ``l1`` makes weights
    of rarely useful features exactly 0.
    """

    name: ClassVar[str] = "ftrl"
    states: ClassVar[tuple[str, ...]] = ("z", "n")

    alpha: float = more_than(0, 0.1)
    beta: float = at_least(0, 1.0)
    l1: float = at_least(0, 0.0)
    l2: float = at_least(0, 0.0)

    @staticmethod
    def weight(h: Any, state: tuple[Any, ...]) -> Any:
        """w = 0 where abs(z) <= l1, else -(z - sign(z) l1) / ((beta + sqrt(n)) / alpha + l2)."""
        z, n = state
        excess = abs(z) - h.l1
        # Above and below the line times alpha, as a second division takes longer.
        w = -math.copysign(excess, z) * h.alpha / (h.beta + math.sqrt(n) + h.l2 * h.alpha)
        return w if excess > np.float32(0) else np.float32(0)

    @staticmethod
    def update(h: Any, state: tuple[Any, ...], w: Any, g: Any) -> tuple[Any, ...]:
        """sigma = (sqrt(n + g²) - sqrt(n)) / alpha; z += g - sigma w; n += g²."""
        z, n = state
        m = n + g * g
        sigma = (math.sqrt(m) - math.sqrt(n)) * (np.float32(1) / h.alpha)
        return (z + (g - sigma * w), m)

    @staticmethod
    def scale(h: Any, state: tuple[Any, ...], factor: Any) -> tuple[Any, ...]:
        """z times ``factor``: the weight shrinks by just that where l1 = 0, and by more (to 0 near l1) elsewhere.

        n stays, and so does the learning rate of the coordinate.
        """
        return (state[0] * factor, state[1])


@register_optimizer
@dataclass(frozen=True, kw_only=True)
class AdaGrad(Optimizer):
    """Duchi, Hazan, Singer 2011, "Adaptive Subgradient Methods", the diagonal form.

    ``initial`` is added to the sum of squared gradients, as if it had been there before the first.
    """

    name: ClassVar[str] = "adagrad"
    states: ClassVar[tuple[str, ...]] = ("w", "g2")

    alpha: float = more_than(0, 0.1)
    initial: float = more_than(0, 0.1)
    l2: float = at_least(0, 0.0)

    @staticmethod
    def weight(h: Any, state: tuple[Any, ...]) -> Any:
        """The first state."""
        return state[0]

    @staticmethod
    def update(h: Any, state: tuple[Any, ...], w: Any, g: Any) -> tuple[Any, ...]:
        """G += g²; w -= alpha g / sqrt(initial + G), with g = gradient + l2 w."""
        g = g + h.l2 * w
        total = state[1] + g * g
        return (w - h.alpha * g / math.sqrt(h.initial + total), total)


@register_optimizer
@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent with a fixed rate: w -= alpha (g + l2 w)."""

    name: ClassVar[str] = "sgd"
    states: ClassVar[tuple[str, ...]] = ("w",)

    alpha: float = more_than(0, 0.01)
    l2: float = at_least(0, 0.0)

    @staticmethod
    def weight(h: Any, state: tuple[Any, ...]) -> Any:
        """The only state."""
        return state[0]

    @staticmethod
    def update(h: Any, state: tuple[Any, ...], w: Any, g: Any) -> tuple[Any, ...]:
        """W -= alpha (g + l2 w)."""
        return (w - h.alpha * (g + h.l2 * w),)
