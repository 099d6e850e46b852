"""Tables of many threads, each with its own: their kernels' working memory is theirs for as long as they run."""

from __future__ import annotations

import subprocess
import sys

_HAMMER = """
import threading
import numpy as np
from penstock.optim import SGD
from penstock.table import Table

def work(seed, bad):
    random = np.random.default_rng(seed)
    table = Table(SGD(alpha=1.0), segments=4, slots=1)
    keys = np.unique(random.integers(1, 1 << 63, 3000, dtype=np.uint64)) << np.uint64(1)
    total = np.zeros(len(keys), np.float32)
    for _ in range(40):
        some = np.sort(random.permutation(len(keys))[: random.integers(1, 900)])
        for scrap in [np.empty(random.integers(1, 600), np.uint64) for _ in range(20)]:
            scrap[:] = 7
        table.push(keys[some], np.full((len(some), 1), -1, np.float32))
        total[some] += 1
        if not np.array_equal(table.pull(keys)[:, 0], total):
            bad.append(seed)
            return

bad = []
threads = [threading.Thread(target=work, args=(seed, bad)) for seed in range(40)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("wrong:", bad)
"""


def test_kernels_keep_their_working_memory() -> None:
    """Were it freed too early, other threads would get it: more than eight of them to a core share heaps.

    In a process of its own, as it may crash.
    """
    done = subprocess.run([sys.executable, "-c", _HAMMER], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "wrong: []"), done.stderr
