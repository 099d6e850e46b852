"""``make test-dist``: installs the wheel with each extra in a new environment, and imports what the extra brings.

It takes some minutes and the network. So ``make test`` looks at the wheel's contents alone, in
``test_distribution.py``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import tomllib
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

__all__ = ["BRINGS", "ROOT", "build_wheel", "extras", "main"]

ROOT = Path(__file__).resolve().parents[1]

BRINGS = {
    "": "import penstock.train, penstock.job, penstock.cli.commands",
    "bench": "import vowpalwabbit, sklearn, fastapi",
    "dev": "import pytest, hypothesis, mypy, build, twine, polars, playwright, schemathesis, onnxruntime",
    "kafka": "import confluent_kafka, penstock.log.sources.kafka",
    "lbfgs": "import scipy.optimize, penstock.train.tree.lbfgs",
    "mlflow": "import mlflow.pyfunc, penstock.export.mlflow",
    "nats": "import nats, penstock.log.sources.nats",
    "onnx": "import onnx, penstock.export.graph",
    "otel": "import penstock.serve.api.tracing",
    "serve": "import uvloop, penstock.serve.start, penstock.serve.api.metrics, penstock.transport.http_server",
    "stream": "import deltalake, penstock.stream.query, penstock.log.sources.http, penstock.transport.http_server",
}
"""What must be importable once an extra is installed; "" is none. `bench-tensorflow`, a peer of 1 GB that lives in
an environment of its own, is not tried."""


def extras() -> dict[str, list[str]]:
    """The extras of pyproject.toml, with their requirements."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        found: dict[str, list[str]] = tomllib.load(file)["project"]["optional-dependencies"]
    return found


def build_wheel(folder: Path, source: Path = ROOT) -> Path:
    """Build the wheel of a source tree, with the tools of this environment; without the network."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the wheel cannot be built:\n{done.stdout}\n{done.stderr}")
    [wheel] = folder.glob("*.whl")
    return wheel


def try_extra(wheel: Path, extra: str, folder: Path) -> str | None:
    """Install the wheel with an extra in a new environment, and import; what went wrong, or None."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    wanted = f"{wheel}[{extra}]" if extra else str(wheel)
    code = f"import penstock; assert {str(folder)!r} in penstock.__file__; {BRINGS[extra]}"
    version = "import importlib.metadata as m, penstock; assert m.version('penstock-ml') == penstock.__version__"
    for command in (
        [python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wanted],
        [python, "-m", "pip", "check"],
        [python, "-c", code],
        [python, "-c", version],
        [folder / "bin" / "penstock", "--version"],
        [python, "-m", "penstock", "--help"],
    ):
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=folder)
        if done.returncode:
            return f"{' '.join(map(str, command))}: {done.stderr or done.stdout}"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the extras that are named, or all; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.distribution", description=__doc__)
    parser.add_argument("extras", nargs="*", help="which; none means the package alone, and each")
    chosen = parser.parse_args(arguments).extras or list(BRINGS)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="penstock-dist-") as name:
        folder = Path(name)
        wheel = build_wheel(folder)
        with zipfile.ZipFile(wheel) as archive:
            print(f"{wheel.name}: {len(archive.namelist())} files")
        for number, extra in enumerate(chosen):
            wrong = try_extra(wheel, extra, folder / f"environment-{number}")
            print(f"{extra or 'no extra':10} {wrong or 'ok'}", flush=True)
            failed += wrong is not None
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
