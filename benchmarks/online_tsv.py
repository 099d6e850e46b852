"""``online`` from text: ours from TSV in the Criteo layout, Vowpal Wabbit from its text."""

from __future__ import annotations

from benchmarks import vw
from benchmarks.clicklog import Clicks, open_tsv
from benchmarks.harness import Goal, Options, Result, machine
from benchmarks.online import compare

__all__ = ["run"]


def run(options: Options) -> Result:
    """Ours from TSV; VW from text."""
    clicks = Clicks(options.rows)
    path = clicks.tsv
    result = Result(
        name="online-tsv",
        options=options,
        conditions={"rows": clicks.rows, "repetitions": options.repetitions, **machine(vw.PACKAGE)},
        goals=(Goal(what="vw_text", least=2), Goal(what="logloss_above_vw", most=0.001)),
    )
    compare(result, clicks, options, lambda: open_tsv(path), from_cache=False)
    return result
