"""Dense parameters as rows of a table, so that they are pulled, pushed and checkpointed like any others.

An array is cut into blocks; a block is a row under a hash of the parameter's name and the block's number, so
that blocks spread over all segments, and with these over all servers.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from penstock.batch import Floats, Keys
from penstock.errors import ConfigError
from penstock.features.categories import seed_of
from penstock.kernels import hashing
from penstock.optim import Optimizer

__all__ = ["DenseSlices"]

_SIZE_MAX = 1 << 31


class DenseSlices:
    """A parameter f32[shape] as rows of ``block`` values, for a table of dim ``block``.

    Several parameters may share a table. A block that has no row yet is all zeros.

    ``keys`` u64[blocks] rise; rows, of the parameter or of its gradient, are in the order of the keys.
    """

    def __init__(self, name: str, shape: tuple[int, ...], block: int = 64) -> None:
        """Keys depend on the name, the number of blocks and nothing else.

        Raises:
            ConfigError: no name, or a size that is not allowed.
        """
        if not name:
            raise ConfigError("a dense parameter must have a name")
        if block < 1 or any(n < 1 for n in shape) or math.prod(shape) > _SIZE_MAX:
            raise ConfigError(
                f"dense parameter {name!r}: block and shape must be >= 1, of {_SIZE_MAX} values at most, "
                f"got block {block}, shape {shape}"
            )
        self.name, self.shape, self.block = name, tuple(shape), block
        self.size = math.prod(shape)
        blocks = -(-self.size // block)
        keys = np.empty(blocks, np.uint64)
        target = hashing.Target(np.arange(blocks), keys, np.empty(0, np.float32))
        # Columns and crosses of users have other names: none begins like this.
        column = hashing.Column(seed_of("\x1fdense\x1f" + name), np.uint64(0))
        hashing.integer_keys(np.arange(blocks), np.empty(0, np.uint8), 0, column, target, 0)
        self._order: NDArray[np.int64] = np.argsort(keys)
        self.keys: Keys = keys[self._order]
        self.keys.flags.writeable = False
        if (self.keys[1:] == self.keys[:-1]).any():
            raise ConfigError(f"dense parameter {name!r}: two blocks have one key; give it another name")

    def __len__(self) -> int:
        """Number of blocks."""
        return len(self.keys)

    def to_array(self, rows: Floats) -> Floats:
        """The parameter f32[shape] of its rows f32[blocks, block]."""
        if rows.shape != (len(self), self.block):
            raise ValueError(f"rows of {self.name!r} must be f32{[len(self), self.block]}, got {list(rows.shape)}")
        blocks = np.empty((len(self), self.block), np.float32)
        blocks[self._order] = rows
        return blocks.reshape(-1)[: self.size].reshape(self.shape)

    def to_rows(self, array: Floats) -> Floats:
        """Rows f32[blocks, block] of an array f32[shape], such as the gradient; the last block ends with zeros."""
        if array.shape != self.shape:
            raise ValueError(f"{self.name!r} must be f32{list(self.shape)}, got {list(array.shape)}")
        blocks = np.zeros((len(self), self.block), np.float32)
        blocks.reshape(-1)[: self.size] = array.reshape(-1)
        return blocks[self._order]

    def rows_for(self, array: Floats, optimizer: Optimizer) -> tuple[Keys, Floats]:
        """Rows that stand for the values f32[shape], as ``Table.insert`` and ``Model.initial_rows`` take them.

        Words are f32[blocks, width]; states besides the weight are 0.

        Raises:
            ConfigError: the optimizer keeps no weight from which a row could be made.
        """
        if optimizer.states[0] != "w":
            raise ConfigError(
                f"dense parameter {self.name!r}: initial values need an optimizer whose first state is the weight "
                f"'w' (adagrad, sgd), got {optimizer.name} with states {', '.join(optimizer.states)}"
            )
        words = np.zeros((len(self), self.block * len(optimizer.states)), np.float32)
        words[:, : self.block] = self.to_rows(array)
        return self.keys, words
