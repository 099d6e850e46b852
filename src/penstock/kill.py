"""Kill points: places between two steps of a commit, at which tests let a process die.

``PENSTOCK_KILL_AT=7`` in the environment ends the process by SIGKILL at the seventh point that it comes to,
whichever that is; so a test that counts up goes through all of them. Without it a point costs next to nothing.
"""

from __future__ import annotations

import os
import signal

__all__ = ["VARIABLE", "kill_point"]

VARIABLE = "PENSTOCK_KILL_AT"
_left = int(os.environ.get(VARIABLE, "0") or 0)


def kill_point(name: str) -> None:
    """Die here, if it is this point's turn; ``name`` is told on standard error."""
    global _left
    if _left <= 0:
        return
    _left -= 1
    if _left == 0:
        os.write(2, f"killed at {name}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)
