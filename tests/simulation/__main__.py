"""``python -m tests.simulation``: one seed with its trace, or many on all cores."""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor

from tests.simulation.faults import THEMES
from tests.simulation.run import simulate


def _one(seed: int) -> tuple[int, str | None, int]:
    try:
        return seed, None, simulate(seed).events
    except Exception as error:
        return seed, f"{type(error).__name__}: {error}", 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this seed alone")
    parser.add_argument("--theme", choices=sorted(set(THEMES)), help="faults of this kind alone")
    parser.add_argument("--trace", action="store_true", help="print every event")
    parser.add_argument("--seeds", type=int, default=2000, help="run so many")
    parser.add_argument("--first", type=int, default=0, help="from this one on")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    if options.seed is not None:
        print(simulate(options.seed, theme=options.theme, trace=print if options.trace else None))
        return 0
    failed = events = 0
    with ProcessPoolExecutor(options.jobs) as pool:
        seeds = range(options.first, options.first + options.seeds)
        for seed, error, count in pool.map(_one, seeds, chunksize=25):
            events += count
            if error is not None:
                failed += 1
                print(f"seed {seed}: {error}", flush=True)
    print(f"{options.seeds:,} seeds, {events:,} events, {failed:,} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
