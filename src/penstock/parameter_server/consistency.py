"""How much waiting a user accepts: BSP, SSP(s) or ASP. Values only; who waits for what is the server's matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from penstock.errors import ConfigError

__all__ = ["ASP", "BSP", "SSP", "Consistency", "parse_consistency"]

STALENESS_MAX = 1_000_000


@dataclass(frozen=True)
class Consistency:
    """Base of the three."""

    together: ClassVar[bool] = False
    """Whether the micro-batches of a clock are summed in their order and applied at once."""

    @property
    def bound(self) -> int | None:
        """A micro-batch of clock t may start when all clocks <= t - bound - 1 are applied; None: at any time."""
        raise NotImplementedError

    def __str__(self) -> str:
        return type(self).__name__.lower()


@dataclass(frozen=True)
class BSP(Consistency):
    """Bulk synchronous (Valiant 1990): a clock's micro-batches see the model as all clocks before left it.

    The result depends neither on timing nor on the number of servers and workers, bit for bit.
    """

    together: ClassVar[bool] = True

    @property
    def bound(self) -> int:
        """0: every earlier clock is applied."""
        return 0


@dataclass(frozen=True)
class SSP(Consistency):
    """Stale synchronous (Ho et al. 2013): nobody starts more than ``staleness`` clocks ahead of the slowest.

    SSP(0) waits as BSP does, but applies each micro-batch as it comes.
    """

    staleness: int

    def __post_init__(self) -> None:
        whole = isinstance(self.staleness, int) and not isinstance(self.staleness, bool)
        if not (whole and 0 <= self.staleness <= STALENESS_MAX):
            raise ConfigError(
                f"consistency 'ssp' needs a staleness of 0 to {STALENESS_MAX:,}, got {self.staleness!r}; "
                "for no bound use 'asp'"
            )

    @property
    def bound(self) -> int:
        """The staleness."""
        return self.staleness

    def __str__(self) -> str:
        return f"ssp:{self.staleness}"


@dataclass(frozen=True)
class ASP(Consistency):
    """Asynchronous: nobody waits."""

    @property
    def bound(self) -> None:
        """No bound."""
        return


def parse_consistency(text: str) -> Consistency:
    """``bsp``, ``asp`` or ``ssp:4``, as ``str`` of each gives it.

    Raises:
        ConfigError: anything else.
    """
    name, colon, number = text.strip().lower().partition(":")
    if name in ("bsp", "asp") and not colon:
        return BSP() if name == "bsp" else ASP()
    if name == "ssp" and number.isdecimal():
        return SSP(int(number))
    raise ConfigError(f"consistency {text!r} is not known; allowed: bsp, ssp:4 (any number) and asp")
