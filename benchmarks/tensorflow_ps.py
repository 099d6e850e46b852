"""TensorFlow's ParameterServerStrategy: logistic regression by FTRL on ready ids, with one server and one worker.

``python -m benchmarks.tensorflow_ps ...`` is the chief: it starts the two others, all on loopback, and prints one
JSON object. It needs TensorFlow and NumPy alone; ``run_peer`` starts it in the environment that has them.

It is what a user of TensorFlow's public API can write, made as fast as we could. Processor time of all three
processes at batches of 512 is 3.1 us a row (10 with a step a call), and what it would be otherwise is in brackets:

- One vector holds all weights, those of the numbers and of the bias behind those of the ids, so a step is one
  gather and one sparse update (4.0 with a vector of their own).
- Equal ids of a batch are merged on the worker, by tf.data ahead of time (3.3, and the log loss is no better).
- FTRL's settings are constants on the server. On the worker, each would be a message (3.4, and a third slower).
- Many steps are one function, unrolled (5.0 by fours, 4.6 as a loop of TensorFlow's: a message for its condition).
- An operation has one thread (at batches of 2,048: 1.9 us a row, and 2.4 with two).
- The gradient is written out and summed, and the update is the raw operation: the Ftrl of Keras 3 is dense.
- Batches are records of a flat file, which tf.data reads without Python.

The defaults are the fastest of 512 to 8,192 rows a batch whose log loss is within 1 % of ``benchmarks.online``'s.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import ROOT
from benchmarks.vw import HUGE_PAGES

__all__ = ["MISSING", "PYTHON", "run_peer"]

PYTHON = "PENSTOCK_TF_PYTHON"
"""Environment variable that names the Python with TensorFlow, where it is not this one."""
MISSING = (
    f"tensorflow is not installed (pip install 'penstock-ml[bench-tensorflow]', or {PYTHON}=its/bin/python): "
    "nothing to compare with"
)

_ROLES = ("ps", "worker")
_READ_AHEAD = 8


def run_peer(
    ids: Path,
    labels: Path,
    *,
    values: Path | None = None,
    batch: int = 4096,
    slots: int = 1 << 22,
    alpha: float = 0.1,
    beta: float = 1.0,
    steps: int = 16,
    ahead: bool = False,
    repetitions: int = 1,
    python: Path | None = None,
    timeout_s: float = 600.0,
) -> dict[str, Any] | None:
    """One warm-up and ``repetitions`` passes, each from empty; None where TensorFlow is missing.

    Args:
        ids: i32[N, F] in NumPy's format, each from 0 to ``slots`` - 1.
        labels: f32[N].
        values: f32[N, V] of numbers that have a weight each, or None.
        batch: rows a step; the rows left over at the end are not learnt.
        alpha, beta: of FTRL.
        steps: batches in one call of the worker.
        ahead: pull each batch before the one before it is pushed.
        python: the interpreter with TensorFlow; else the one that PENSTOCK_TF_PYTHON names, else this one.

    Returns:
        ``rows_per_s`` and ``seconds`` (medians), ``logloss`` (progressive: before each batch's update), ``rows``,
        ``cpu_us_per_row`` of each process, and the settings.

    Raises:
        FileNotFoundError: the interpreter that was named is not there, or has no TensorFlow.
        RuntimeError: the run failed.
        subprocess.TimeoutExpired: it took longer than ``timeout_s``; no process is left.
    """
    interpreter = _interpreter(python)
    if interpreter is None:
        return None
    arguments = ["--ids", ids, "--labels", labels, *(("--values", values) if values else ())]
    arguments += ["--batch", batch, "--slots", slots, "--alpha", alpha, "--beta", beta, "--steps", steps]
    arguments += ["--ahead" if ahead else "--no-ahead", "--repetitions", repetitions]
    run = subprocess.run(
        [interpreter, "-m", "benchmarks.tensorflow_ps", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )
    if run.returncode:
        raise RuntimeError(f"tensorflow_ps {' '.join(map(str, arguments))}: {run.stderr.strip()[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def _interpreter(named: Path | None) -> str | None:
    """The Python with TensorFlow."""
    path = str(named or os.environ.get(PYTHON, ""))
    if not path:
        return sys.executable if importlib.util.find_spec("tensorflow") else None
    question = "import importlib.util, sys; sys.exit(importlib.util.find_spec('tensorflow') is None)"
    if subprocess.run([path, "-c", question], check=False).returncode:
        raise FileNotFoundError(f"{path} has no tensorflow (from {'python' if named else PYTHON})")
    return path


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """The arrays, as flat files of records of a batch each."""

    ids: Path
    labels: Path
    values: Path | None
    batch: int
    rows: int
    fields: int
    numbers: int

    @staticmethod
    def of(arguments: argparse.Namespace) -> _Rows:
        """Checks shapes, types and ids.

        Raises:
            ValueError: with the file, what it has and what it may have.
        """
        ids = _array(arguments.ids, np.int32, 2)
        labels = _array(arguments.labels, np.float32, 1)
        values = _array(arguments.values, np.float32, 2) if arguments.values else None
        N, batch = len(ids), arguments.batch
        for path, array in ((arguments.labels, labels), (arguments.values, values)):
            if array is not None and len(array) != N:
                raise ValueError(f"{path} has {len(array)} rows, {arguments.ids} has {N}")
        if not 1 <= batch <= N:
            raise ValueError(f"batch must be from 1 to the {N} rows of {arguments.ids}, got {batch}")
        if ids.min() < 0 or ids.max() >= arguments.slots:
            raise ValueError(
                f"{arguments.ids} has ids {ids.min()} to {ids.max()}, allowed are 0 to {arguments.slots - 1}"
            )
        return _Rows(
            ids=arguments.ids,
            labels=arguments.labels,
            values=arguments.values,
            batch=batch,
            rows=N // batch * batch,
            fields=ids.shape[1],
            numbers=0 if values is None else values.shape[1],
        )

    def dataset(self, slots: int) -> Any:
        """Batches: slots i32[U + V + 1], places i32[B * F], numbers and a one f32[B, V + 1], labels f32[B].

        The slots are the U distinct ids, and behind them those of the numbers and of the bias; a place says which
        of them an id is.
        """
        import tensorflow as tf

        B, F, V = self.batch, self.fields, self.numbers
        own = np.arange(slots, slots + V + 1, dtype=np.int32)
        files = [(self.ids, F), (self.labels, 1), *([(self.values, V)] if self.values else [])]
        records = tf.data.Dataset.zip(tuple(self._records(path, width) for path, width in files))

        def decode(ids: Any, labels: Any, *values: Any) -> tuple[Any, ...]:
            distinct, places = tf.unique(tf.reshape(tf.io.decode_raw(ids, tf.int32), [B * F]))
            numbers = [tf.reshape(tf.io.decode_raw(v, tf.float32), [B, V]) for v in values]
            return (
                tf.concat([distinct, own], 0),
                places,
                tf.concat([*numbers, tf.ones([B, 1])], 1),
                tf.reshape(tf.io.decode_raw(labels, tf.float32), [B]),
            )

        return records.map(decode, num_parallel_calls=1).prefetch(_READ_AHEAD)

    def _records(self, path: Path, width: int) -> Any:
        import tensorflow as tf

        array = np.load(path, mmap_mode="r")
        record = self.batch * width * array.itemsize
        rest = array.nbytes - self.rows * width * array.itemsize
        return tf.data.FixedLengthRecordDataset(
            str(path), record, header_bytes=array.offset, footer_bytes=rest, buffer_size=1 << 20
        )


def _array(path: Path, dtype: Any, dimensions: int) -> Any:
    """A file's array, mapped."""
    array = np.load(path, mmap_mode="r")
    if array.dtype != dtype or array.ndim != dimensions or not array.flags.c_contiguous:
        raise ValueError(
            f"{path} must be {np.dtype(dtype)} of {dimensions} dimensions, row by row; "
            f"got {array.dtype} of shape {list(array.shape)}"
        )
    return array


class _Model:
    """The vector on the server, and the function that the worker runs."""

    def __init__(self, strategy: Any, rows: _Rows, *, slots: int, alpha: float, beta: float, ahead: bool) -> None:
        import tensorflow as tf

        self._rows, self._ahead = rows, ahead
        self._own = rows.numbers + 1
        with strategy.scope():
            self._vectors = [tf.Variable(tf.zeros([slots + self._own])) for _ in range(3)]
        # TensorFlow's FTRL has no beta; w = -z / (sqrt(n) / alpha + 2 l2) is ours with l2 = beta / (2 alpha).
        self._settings = {"lr": alpha, "l1": 0.0, "l2": beta / (2 * alpha), "lr_power": -0.5}

    def empty(self) -> None:
        """All zeros again, as at first."""
        import tensorflow as tf

        for vector in self._vectors:
            with tf.device(vector.device):
                vector.assign(tf.zeros(vector.shape))

    def learn(self, steps: int) -> Any:
        """A function that learns ``steps`` batches of an iterator, and returns the sum of their rows' log loss."""
        import tensorflow as tf

        @tf.function
        def learn(iterator: Any) -> Any:
            losses = []
            batch = next(iterator)
            pulled = self._pull(batch)
            for step in range(1, steps + 1):
                now, weights = batch, pulled
                if self._ahead and step < steps:
                    batch = next(iterator)
                    pulled = self._pull(batch)
                losses.append(self._push(now, weights))
                if not self._ahead and step < steps:
                    batch = next(iterator)
                    pulled = self._pull(batch)
            return tf.add_n(losses)

        return learn

    def _pull(self, batch: Any) -> Any:
        import tensorflow as tf

        return tf.gather(self._vectors[0], batch[0])

    def _push(self, batch: Any, pulled: Any) -> Any:
        """Updates by the gradient of the summed loss; returns that loss."""
        import tensorflow as tf

        slots, places, x, y = batch
        B, F, distinct = self._rows.batch, self._rows.fields, tf.size(slots) - self._own
        of_ids, own = pulled[:distinct], pulled[distinct:]
        logits = tf.reduce_sum(tf.reshape(tf.gather(of_ids, places), [B, F]), 1) + tf.linalg.matvec(x, own)
        loss = tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(labels=y, logits=logits))
        error = tf.sigmoid(logits) - y
        of_places = tf.reshape(tf.tile(error[:, None], [1, F]), [B * F])
        gradient = tf.concat(
            [
                tf.math.unsorted_segment_sum(of_places, places, distinct),
                tf.linalg.matvec(x, error, transpose_a=True),
            ],
            0,
        )
        weights, n, z = self._vectors
        with tf.device(weights.device):
            settings = {name: tf.constant(value) for name, value in self._settings.items()}
        tf.raw_ops.ResourceSparseApplyFtrl(
            var=weights.handle, accum=n.handle, linear=z.handle, grad=gradient, indices=slots, **settings
        )
        return loss


@contextmanager
def _cluster(arguments: argparse.Namespace) -> Iterator[tuple[Any, list[int]]]:
    """The strategy over a server and a worker of our own, and the ids of the three processes."""
    import tensorflow as tf

    addresses = {role: [f"127.0.0.1:{_free_port()}"] for role in (*_ROLES, "chief")}
    command = [sys.executable, "-m", "benchmarks.tensorflow_ps", "--threads", str(arguments.threads)]
    # They end when their standard input does: with us, however we end. And we end when one of them does.
    processes = [
        subprocess.Popen(
            [*command, "--role", role, "--cluster", json.dumps(addresses)],
            stdin=subprocess.PIPE,
            env={**HUGE_PAGES, **os.environ},
        )
        for role in _ROLES
    ]
    done = threading.Event()

    def watch(role: str, process: subprocess.Popen) -> None:
        status = process.wait()
        if not done.is_set():
            print(f"the {role} ended before the run did, with status {status}", file=sys.stderr, flush=True)
            os._exit(1)

    watchers = [
        threading.Thread(target=watch, args=pair, daemon=True) for pair in zip(_ROLES, processes, strict=True)
    ]
    for watcher in watchers:
        watcher.start()
    try:
        resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec(addresses), rpc_layer="grpc", task_type="chief", task_id=0
        )
        yield (
            tf.distribute.ParameterServerStrategy(resolver),
            [*(process.pid for process in processes), os.getpid()],
        )
    finally:
        done.set()
        for process, watcher in zip(processes, watchers, strict=True):
            process.kill()
            watcher.join()


def _serve(arguments: argparse.Namespace) -> None:
    """The parameter server or the worker."""
    import tensorflow as tf

    def watch() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    server = tf.distribute.Server(
        json.loads(arguments.cluster),
        job_name=arguments.role,
        task_index=0,
        protocol="grpc",
        config=tf.compat.v1.ConfigProto(intra_op_parallelism_threads=arguments.threads),
    )
    server.join()


def _train(arguments: argparse.Namespace) -> dict[str, Any]:
    """The chief: passes from empty, the first of them unmeasured."""
    rows = _Rows.of(arguments)
    import tensorflow as tf

    with _cluster(arguments) as (strategy, pids):
        coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
        model = _Model(
            strategy,
            rows,
            slots=arguments.slots,
            alpha=arguments.alpha,
            beta=arguments.beta,
            ahead=arguments.ahead,
        )
        batches = coordinator.create_per_worker_dataset(lambda: rows.dataset(arguments.slots))
        calls, rest = divmod(rows.rows // rows.batch, arguments.steps)
        functions = [model.learn(arguments.steps)] * calls + ([model.learn(rest)] if rest else [])
        seconds, losses, cpu = [], [], []
        for _ in range(1 + arguments.repetitions):
            model.empty()
            iterator = iter(batches)
            cpu_before, began = [_cpu_s(pid) for pid in pids], time.perf_counter()
            sums = [coordinator.schedule(function, args=(iterator,)) for function in functions]
            coordinator.join()
            seconds.append(time.perf_counter() - began)
            cpu.append([after - before for after, before in zip(map(_cpu_s, pids), cpu_before, strict=True)])
            losses.append(float(np.sum(coordinator.fetch(sums), dtype=np.float64)) / rows.rows)
        median = statistics.median(seconds[1:])
        return {
            "rows_per_s": rows.rows / median,
            "seconds": median,
            "logloss": statistics.median(losses[1:]),
            "rows": rows.rows,
            "cpu_us_per_row": {
                role: statistics.median(run[i] for run in cpu[1:]) / rows.rows * 1e6
                for i, role in enumerate((*_ROLES, "chief"))
            },
            **{name: getattr(arguments, name) for name in ("batch", "slots", "alpha", "beta", "steps", "ahead")},
            "tensorflow": tf.__version__,
        }


def _cpu_s(pid: int) -> float:
    """Seconds of processor time of a process of ours, or NaN where the system has no /proc."""
    stat = Path(f"/proc/{pid}/stat")
    if not stat.exists():
        return float("nan")
    user, system = stat.read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _slots(text: str) -> int:
    """``_slots("2^22") == _slots("4194304")``."""
    base, power, exponent = text.partition("^")
    return int(base) ** int(exponent) if power else int(base)


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tensorflow_ps")
    parser.add_argument("--role", choices=(*_ROLES, "chief"), default="chief")
    parser.add_argument("--cluster", help="addresses by role, as JSON; for the other roles")
    parser.add_argument("--ids", type=Path, help="i32[N, F].npy")
    parser.add_argument("--labels", type=Path, help="f32[N].npy")
    parser.add_argument("--values", type=Path, help="f32[N, V].npy of numbers that have a weight each")
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--slots", type=_slots, default=1 << 22, help="as 2^22")
    parser.add_argument("--alpha", type=float, default=0.1)
    parser.add_argument("--beta", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=16, help="batches in one call of the worker")
    parser.add_argument("--ahead", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of an operation; 0: as many as cores")
    arguments = parser.parse_args()
    # Before TensorFlow is imported, which would say on each start which instructions it has.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if arguments.role != "chief":
        _serve(arguments)
        return
    try:
        print(json.dumps(_train(arguments)), flush=True)
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        code = 1
    # Not by way of TensorFlow's own end: it logs for each function that it cannot tell the others to forget it.
    os._exit(code)


if __name__ == "__main__":
    _main()
