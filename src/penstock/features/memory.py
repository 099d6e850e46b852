"""Arrays that are used again and again, so that their pages need not be asked of the system each time.

Fresh memory of a batch of 8,192 examples (4 MB) costs a thousand page faults, a tenth of all the time to learn it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Memory"]


class Memory:
    """Keeps one piece of memory for each name. Not for two threads at once."""

    def __init__(self) -> None:
        self._held: dict[str, NDArray[np.uint8]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """An array to be filled; it is overwritten by what is next asked for under the same name."""
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        held = self._held.get(name)
        if held is None or len(held) < nbytes:
            held = self._held[name] = np.empty(nbytes + nbytes // 8, np.uint8)
        array: NDArray[Any] = held[:nbytes].view(dtype).reshape(shape)
        return array
