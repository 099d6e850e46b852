"""What others install: the name, the wheel's contents, the extras, and the versions that `make` takes.

``tests.distribution`` (`make test-dist`) installs it.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import penstock
from penstock.version import DISTRIBUTION, the_extra
from tests.distribution import BRINGS, ROOT, build_wheel, extras

PINNED = ROOT / "constraints.txt"
DATA = (".css", ".js", ".typed")


def pinned() -> dict[str, Version]:
    """The versions of constraints.txt, by package."""
    lines = [line for line in PINNED.read_text().splitlines() if not line.startswith("#")]
    pairs = [line.partition("==") for line in lines]
    # Nothing but names and versions: no paths, no addresses, nothing of the machine that wrote it.
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.!+]*", line) for line in lines)
    return {canonicalize_name(name): Version(version) for name, _, version in pairs}


def texts() -> list[Path]:
    """Everything that a user may read or run."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "Makefile"]
    folders = [ROOT / name for name in ("src", "benchmarks", "examples", "tests")]
    code = [path for folder in folders for path in folder.rglob("*.py")]
    return [path for path in [*pages, *code, *(ROOT / "examples").glob("*.sh")] if path != Path(__file__)]


def wrong_names(text: str) -> list[str]:
    """Places where pip would install the other project that is called penstock."""
    extra = r"penstock\[[a-z,-]+\]"
    installed = r"pip3? install [^\n`]*?(?<![\w./-])penstock(?![\w./=-])"
    return re.findall(rf"{installed}|(?<![\w-]){extra}|(?<![\w-])penstock==", text)


def test_what_is_to_be_installed_has_the_right_name() -> None:
    found = {str(path.relative_to(ROOT)): wrong_names(path.read_text()) for path in texts()}
    assert len(found) > 400
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


def test_a_wrong_name_is_found() -> None:
    for wrong in (
        "pip install penstock",
        "`pip install 'penstock[stream]'`",
        "pip install --no-deps penstock",
        "and `'penstock[mlflow]'`",
        'f"penstock=={version}"',
        "pip install numpy && pip install -U penstock",
    ):
        assert wrong_names(wrong), wrong
    for right in (
        "pip install penstock-ml",
        "pip install 'penstock-ml[stream,serve]'",
        "pip install .",
        "penstock[0]",
    ):
        assert not wrong_names(right), right


def test_there_is_one_name() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    assert project["name"] == DISTRIBUTION
    assert the_extra("stream") == "the extra `stream`: pip install 'penstock-ml[stream]'"
    assert importlib.metadata.version(DISTRIBUTION) == penstock.__version__
    named = re.findall(r"the_extra\('?\"?(\w+)", "".join(path.read_text() for path in ROOT.glob("src/**/*.py")))
    assert {name for name in named if name not in ("name", "extra")} <= extras().keys()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what is needed, so that two runs do not meet in one folder."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__"))
    return build_wheel(tmp_path_factory.mktemp("wheel"), source)


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode())


def test_the_wheel_has_all_files(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        [entry] = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        assert archive.read(entry).decode().split() == [
            "[console_scripts]",
            "penstock",
            "=",
            "penstock.cli.main:main",
        ]
    files = [path for path in (ROOT / "src").rglob("*") if path.is_file() and path.suffix not in (".pyc", ".pth")]
    assert names == {path.relative_to(ROOT / "src").as_posix() for path in files}
    assert {path.suffix for path in files} == {".py", *DATA}


def test_the_wheel_says_what_it_needs(metadata: Message) -> None:
    assert (metadata["Name"], metadata["Version"]) == (DISTRIBUTION, penstock.__version__)
    assert set(metadata.get_all("Provides-Extra") or []) == extras().keys()
    needed = [Requirement(text) for text in metadata.get_all("Requires-Dist") or []]
    plain = {each.name for each in needed if each.marker is None}
    assert plain == {"numpy", "numba", "pyarrow", "msgspec", "fsspec", "rich", "click"}
    # Ranges stay open: pins are for `make` alone.
    exact = [each.name for each in needed if any(spec.operator == "==" for spec in each.specifier)]
    assert set(exact) <= {"vowpalwabbit", "tensorflow", "tensorflow-cpu"}


def test_the_wheel_passes_the_check_of_the_index(wheel: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", str(wheel)], capture_output=True)
    assert done.returncode == 0, done.stdout.decode()


def test_each_extra_is_tried() -> None:
    assert BRINGS.keys() == {"", *extras()} - {"bench-tensorflow"}


def test_what_make_installs_is_pinned_and_within_the_ranges() -> None:
    versions = pinned()
    assert DISTRIBUTION not in versions
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    chosen = {name: texts for name, texts in extras().items() if name != "bench-tensorflow"}
    for text in [*project["dependencies"], *(text for texts in chosen.values() for text in texts)]:
        wanted = Requirement(text)
        name = canonicalize_name(wanted.name)
        if name != DISTRIBUTION:
            assert versions[name] in wanted.specifier, text
    for name in versions:
        # What those need is pinned, too, as far as this Python has it.
        try:
            needed = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for text in needed:
            wanted = Requirement(text)
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                assert canonicalize_name(wanted.name) in versions or name in ("pip", "setuptools"), (name, text)


def test_make_takes_the_pinned_versions() -> None:
    setup = re.search(r"^\$\(READY\):.*?\n\n", (ROOT / "Makefile").read_text(), re.DOTALL | re.MULTILINE)
    assert setup is not None
    assert "constraints.txt" in (ROOT / "Makefile").read_text()
    assert "PIP_CONSTRAINT=$(CONSTRAINTS)" in setup[0] and "$(CONSTRAINTS)" in setup[0].splitlines()[0]


def test_the_package_is_a_command() -> None:
    done = subprocess.run([sys.executable, "-m", "penstock", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"penstock, version {penstock.__version__}\n")
