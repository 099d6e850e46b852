"""What the protocol does with arrays of keys: checks, and which keys belong to which server."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from penstock.batch import Floats, Keys
from penstock.kernels import routing as kernels
from penstock.kernels.finite import first_not_finite as _first_not_finite
from penstock.kernels.merge import sum_sorted
from penstock.parameter_server.effects import Owners

__all__ = ["Split", "first_bad_key", "first_not_finite", "restore_rows", "sum_parts"]


def first_bad_key(keys: Keys, owners: Owners, index: int) -> int:
    """Place of the first key that does not rise, is odd, 0, or not of server ``index``; -1 if there is none."""
    return int(kernels.first_bad_key(keys, owners, np.uint16(index), _shift(owners)))


def first_not_finite(gradients: Floats) -> int:
    """Place of the first nan or infinity, in C order; -1 if there is none."""
    return int(_first_not_finite(gradients.reshape(-1)))


def sum_parts(parts: Sequence[tuple[Keys, Floats]]) -> tuple[Keys, Floats]:
    """Distinct keys, rising, and the sums of their gradients, each taken in the order of the parts."""
    return parts[0] if len(parts) == 1 else sum_sorted(list(parts))


def restore_rows(keys: Keys, rows: Floats, keys_before: Keys, rows_before: Floats) -> None:
    """Set those ``rows`` f32[n, dim] of ``keys`` that are in ``keys_before``, both rising, to ``rows_before``."""
    if len(keys_before):
        places = np.minimum(np.searchsorted(keys_before, keys), len(keys_before) - 1)
        found = keys_before[places] == keys
        rows[found] = rows_before[places[found]]


class Split:
    """Rising keys u64[n] by the server that owns them: what each is asked, and where its answers go."""

    __slots__ = ("_bounds", "_order", "keys")

    def __init__(self, keys: Keys, owners: Owners, servers: int) -> None:
        self.keys = keys
        self._order: NDArray[np.int32] | None = None
        self._bounds: NDArray[np.int64] = np.array([0, len(keys)], np.int64)
        if servers > 1:
            self._order = np.empty(len(keys), np.int32)
            self._bounds = np.zeros(servers + 1, np.int64)
            kernels.split(keys, owners, _shift(owners), self._order, self._bounds)

    def of(self, server: int) -> Keys:
        """The keys of a server, rising."""
        if self._order is None:
            return self.keys
        places = self._places(server)
        out = np.empty(len(places), np.uint64)
        kernels.gather_keys(self.keys, places, out)
        return out

    def take(self, server: int, values: Floats) -> Floats:
        """Of ``values`` f32[n, dim], the rows of a server's keys."""
        if self._order is None:
            return values
        places = self._places(server)
        out = np.empty((len(places), values.shape[1]), np.float32)
        kernels.gather_rows(values, places, out)
        return out

    def put(self, server: int, values: Floats, into: Floats) -> None:
        """The inverse of ``take``."""
        if self._order is None:
            into[:] = values
        else:
            kernels.scatter_rows(values, self._places(server), into)

    def _places(self, server: int) -> NDArray[np.int32]:
        assert self._order is not None
        return self._order[self._bounds[server] : self._bounds[server + 1]]


def _shift(owners: Owners) -> np.uint64:
    return np.uint64(64 - (len(owners).bit_length() - 1))
