"""The three consistencies as text and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ConfigError
from penstock.parameter_server import ASP, BSP, SSP, Consistency, parse_consistency

kinds = st.sampled_from([BSP(), ASP()]) | st.builds(SSP, st.integers(0, 1_000_000))


@given(kinds)
def test_text_and_back(consistency: Consistency) -> None:
    assert parse_consistency(str(consistency)) == consistency
    assert parse_consistency(f"  {str(consistency).upper()} ") == consistency


@pytest.mark.parametrize(
    "text", ["", "ssp", "ssp:", "ssp:-1", "ssp:1.5", "ssp:x", "bsp:1", "asp:", "sync", "ssp:1:2"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="allowed: bsp, ssp:4"):
        parse_consistency(text)


@pytest.mark.parametrize("staleness", [-1, 1_000_001, True, 1.5, "4"])
def test_staleness_is_a_number_of_clocks(staleness: object) -> None:
    with pytest.raises(ConfigError, match="needs a staleness of 0 to 1,000,000"):
        SSP(staleness)  # type: ignore[arg-type]


def test_bounds() -> None:
    assert (BSP().bound, SSP(3).bound, ASP().bound) == (0, 3, None)
    assert (BSP().together, SSP(0).together, ASP().together) == (True, False, False)
