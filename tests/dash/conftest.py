"""A synthetic comparison whose figures fit each other: curves, idle time, staleness and bytes of one straggler."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from penstock.dash import Comparison, JobSummary, Machine, Point, Trial, WorkerFigures

ROWS = 1_000_000


def scores(logloss: float, auc: float, rows: int = ROWS) -> dict[str, float | None]:
    return {"rows": rows, "logloss": logloss, "auc": auc, "normalised_entropy": logloss / 0.57}


def make_trial(name: str, **given: Any) -> Trial:
    """``logloss``, ``auc``, ``held_out`` at the end; ``paces``: the workers' speeds; the rest are fields."""
    seconds, rows = given.pop("seconds", 20.0), given.pop("rows", ROWS)
    logloss, auc, held_out = given.pop("logloss", 0.48), given.pop("auc", 0.78), given.pop("held_out", None)
    paces, idle = given.pop("paces", (1.0, 1.0, 1.0, 1.0)), given.pop("idle", (0.1, 0.1, 0.1, 0.1))
    noise = random.Random(name)
    curve = []
    for step in range(1, 41):
        done = step / 40
        # Falls as a power of the rows, from noisy first points.
        y = logloss + 0.03 * (done**-0.35 - 1) + (0.1 if step == 1 else 0.0004 / step) * noise.uniform(-1, 1)
        y = logloss if step == 40 else y
        at = round(rows * done)
        curve.append(
            Point(
                seconds=seconds * done,
                rows=at,
                logloss=y,
                recent_logloss=y - 0.004 / step,
                auc=auc - 0.02 * (1 - done),
            )
        )
    share = [pace / sum(paces) for pace in paces]
    by_worker = tuple(
        WorkerFigures(
            name=f"worker-{index}",
            rows=round(rows * part),
            batches=round(rows * part / 512),
            busy_s=seconds * (1 - waits),
            idle_s=seconds * waits,
            waits_s={"pull": 0.8 * seconds * waits, "read": 0.2 * seconds * waits},
        )
        for index, (part, waits) in enumerate(zip(share, idle, strict=True))
    )
    return Trial(
        **{
            "name": name,
            "rows": rows,
            "seconds": seconds,
            "minibatch": 512,
            "servers": 2,
            "workers": len(paces),
            "curve": tuple(curve),
            "scores": scores(logloss, auc, rows),
            "holdout": None if held_out is None else scores(held_out, auc, rows // 10),
            "by_worker": by_worker,
            "bytes_in": 210 * rows,
            "bytes_out": 190 * rows,
            **given,
        }
    )


def poisson(mean: float, count: int) -> dict[int, int]:
    return {at: n for at in range(60) if (n := round(count * math.exp(-mean) * mean**at / math.factorial(at)))}


def make_comparison(*trials: Trial, **given: Any) -> Comparison:
    return Comparison(
        **{
            "job": JobSummary(
                files=("clicks/day-00.parquet", "clicks/day-01.parquet"),
                rows=ROWS,
                features="39 columns, 1.21 M keys",
                optimizer="FTRL (alpha 0.1, beta 1, l1 0, l2 0)",
            ),
            "machine": Machine(cores=8, python="3.11.7", penstock="0.3.0"),
            "when": datetime(2025, 3, 14, 15, 9, tzinfo=UTC),
            "trials": trials,
            **given,
        }
    )


def five_trials() -> tuple[Trial, ...]:
    """Worker 1 is four times slower; BSP waits for it."""
    slow = (1.0, 0.25, 1.0, 1.0)
    return (
        make_trial(
            "bsp",
            description="A global batch is 4 micro-batches; all are applied at once, in order.",
            seconds=42.0,
            logloss=0.4791,
            auc=0.7812,
            paces=slow,
            idle=(0.57, 0.02, 0.56, 0.57),
            staleness={0: 1953},
        ),
        make_trial(
            "ssp:4",
            description="A worker may run 4 clocks ahead of the slowest.",
            seconds=22.0,
            logloss=0.4792,
            auc=0.7810,
            paces=slow,
            idle=(0.12, 0.01, 0.11, 0.13),
            staleness=poisson(1.6, 1953),
            bytes_in=232 * ROWS,
        ),
        make_trial(
            "asp",
            description="Nobody waits.",
            seconds=20.0,
            logloss=0.4793,
            auc=0.7809,
            paces=slow,
            idle=(0.03, 0.01, 0.02, 0.03),
            staleness={**poisson(3.2, 1900), 19: 40, 88: 2},
            bytes_in=236 * ROWS,
            events=((7.25, "worker-3 died"), (7.9, "worker-3's chunk 17 went to worker-0")),
        ),
        make_trial(
            "tree",
            description="Each worker learns its part; models are averaged over a tree.",
            seconds=31.0,
            logloss=0.4862,
            auc=0.7741,
            paces=slow,
            idle=(0.3, 0.0, 0.3, 0.31),
            servers=0,
            minibatch=4096,
            bytes_in=40 * ROWS,
            bytes_out=40 * ROWS,
        ),
        make_trial(
            "online",
            description="One process, one example at a time.",
            seconds=36.0,
            logloss=0.4789,
            auc=0.7814,
            paces=(1.0,),
            idle=(0.04,),
            servers=0,
            workers=1,
            minibatch=1,
            bytes_in=0,
            bytes_out=0,
        ),
    )


@pytest.fixture(scope="session")
def trial() -> Callable[..., Trial]:
    return make_trial


@pytest.fixture(scope="session")
def compare() -> Callable[..., Comparison]:
    return make_comparison


@pytest.fixture(scope="session")
def comparison() -> Comparison:
    """Five strategies, one straggler, one more that failed."""
    failed = Trial(name="ssp:64", description="64 clocks.", error="server 2 (127.0.0.1:9000) died after 3.1 s")
    return make_comparison(*five_trials(), failed, straggler="1=4x")
