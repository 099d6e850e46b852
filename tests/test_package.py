"""The package from outside: its names, its errors, what an import costs, and the examples in its documents."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import penstock
from penstock import errors

ROOT = Path(__file__).parent.parent


def declared() -> dict[str, tuple[str, str]]:
    """What type checkers are told: by exported name, the module and the name there."""
    tree = ast.parse(Path(penstock.__file__).read_text())
    [block] = [
        node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    found: dict[str, tuple[str, str]] = {}
    for statement in block.body:
        assert isinstance(statement, ast.ImportFrom) and statement.module is not None
        for alias in statement.names:
            # Only "import A as A" is an export to type checkers.
            assert alias.asname is not None and alias.asname not in found
            found[alias.asname] = (statement.module, alias.name)
    return found


def test_exported_names_are_those_that_type_checkers_see() -> None:
    assert len(penstock.__all__) == len(set(penstock.__all__))
    assert set(penstock.__all__) == {"__version__", *declared()}


def test_every_name_is_the_one_of_its_module() -> None:
    for name, (module, inner) in declared().items():
        assert getattr(penstock, name) is getattr(importlib.import_module(module), inner), name


def test_import_star() -> None:
    names: dict[str, object] = {}
    exec("from penstock import *", names)
    assert set(penstock.__all__) <= names.keys()


def test_dir_has_every_name_once() -> None:
    names = dir(penstock)
    assert names == sorted(set(names))
    assert set(penstock.__all__) <= set(names)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'penstock' has no attribute 'nonsense'"):
        penstock.nonsense  # noqa: B018
    assert not hasattr(penstock, "load_model")
    with pytest.raises(ImportError):
        from penstock import nonsense  # noqa: F401


def test_an_import_is_quick_because_it_loads_little() -> None:
    code = """
import json, sys
import penstock
known = set(sys.modules)
names = dir(penstock)
more = set(sys.modules) - known
penstock.PenstockError
print(json.dumps([sorted(known), names, sorted(more), sorted(sys.modules)]))
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    known, names, more, after = json.loads(printed)
    heavy = {"numba", "llvmlite", "pyarrow", "numpy", "msgspec", "rich", "fsspec", "pandas"}
    assert not heavy & set(known)
    # Looking does not load either, and one name brings what it needs alone.
    assert set(penstock.__all__) <= set(names) and not more
    assert "penstock.errors" in after and not heavy & set(after)


def test_numba_waits_until_an_optimizer_meets_a_table() -> None:
    code = """
import sys
import penstock as ps
optimizer = ps.FTRL(alpha=0.1)
assert "numba" not in sys.modules
optimizer.hyper()
assert "numba" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# Errors.


def documented() -> list[tuple[str, str, int | None]]:
    """Rows (class, its parent, exit status where one is said) of the tree in the module's docstring."""
    assert errors.__doc__ is not None
    found: list[tuple[str, str, int | None]] = []
    path: list[str] = []
    for line in errors.__doc__.splitlines():
        match = re.fullmatch(r"    ((?:[│ ]   )*)([├└]── )?([A-Z]\w+)( .*)?", line)
        if match is None:
            continue
        depth = len(match[1]) // 4 + bool(match[2])
        path = [*path[:depth], match[3]]
        status = re.search(r"\(exit status (\d+)\)", line)
        found.append((match[3], path[-2] if depth else "Exception", int(status[1]) if status else None))
    return found


def test_the_tree_of_errors_is_the_documented_one() -> None:
    rows = documented()
    assert len(rows) >= 9
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert sorted(name for name, _, _ in rows) == sorted(defined) == sorted(errors.__all__)
    statuses = {"Exception": 1}
    for name, parent, status in rows:
        cls = getattr(errors, name)
        assert cls.__bases__[0].__name__ == parent, name
        statuses[name] = statuses[parent] if status is None else status
        assert cls.exit_status == statuses[name], name
        assert issubclass(cls, penstock.PenstockError)


def test_wrong_input_is_a_value_error_and_trouble_is_not() -> None:
    for name, _, _ in documented():
        cls = getattr(errors, name)
        assert issubclass(cls, ValueError) == issubclass(cls, errors.InputError), name


def test_a_bad_row_says_which() -> None:
    error = errors.RowError(7, "label 'y' is 2")
    assert (str(error), error.row, error.message) == ("row 7: label 'y' is 2", 7, "label 'y' is 2")


# Examples in documents.


@pytest.fixture
def clicks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pa.Table:
    """A click log where the examples look for one."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(1)
    rows = 400
    table = pa.table(
        {
            "clicked": random.integers(0, 2, rows),
            "price": random.random(rows),
            "site": [f"s{i}" for i in random.integers(0, 9, rows)],
            "user": random.integers(0, 99, rows),
        }
    )
    for folder in ("clicks", "log"):
        Path(folder).mkdir()
        for i in range(2):
            pq.write_table(table.slice(i * 200, 200), f"{folder}/{i}.parquet")
    return table


def test_the_example_of_the_readme_runs(clicks: pa.Table) -> None:
    [block] = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    *statements, last = ast.parse(block).body
    assert isinstance(last, ast.Expr) and ast.unparse(last).endswith(".predict(table)")
    names: dict[str, object] = {"table": clicks}
    exec(compile(ast.Module(statements, []), "README.md", "exec"), names)
    scores = eval(compile(ast.Expression(last.value), "README.md", "eval"), names)
    assert scores.shape == (400,) and ((scores > 0) & (scores < 1)).all()
    assert isinstance(names["run"], penstock.Run) and names["run"].rows == 400
    assert names["run"].model is names["model"]
    assert Path("model/manifest.json").exists()


def test_the_example_of_the_package_runs(clicks: pa.Table) -> None:
    assert penstock.__doc__ is not None
    lines = penstock.__doc__.partition("::\n")[2].splitlines()
    code = "\n".join(line[4:] for line in lines if line.startswith("    ") or not line)
    assert code.strip().endswith("run.metrics.auc")
    names: dict[str, object] = {}
    exec(code, names)
    assert isinstance(names["run"], penstock.Run) and names["run"].rows == 400
