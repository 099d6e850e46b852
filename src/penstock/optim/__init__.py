"""How a gradient changes a row: hyperparameters for people, functions of scalars for the kernels."""

from penstock.optim.base import Optimizer, optimizer_from_dict, register_optimizer
from penstock.optim.builtin import FTRL, SGD, AdaGrad

__all__ = ["FTRL", "SGD", "AdaGrad", "Optimizer", "optimizer_from_dict", "register_optimizer"]
