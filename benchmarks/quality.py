"""Quality on a9a (UCI Adult, 123 binary features): ours in a few passes, beside scikit-learn's batch optimum.

The files are not made here: ``--data DIR`` or ``PENSTOCK_DATA`` says where ``a9a`` and ``a9a.t`` are.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import penstock as ps
from benchmarks.harness import ROOT, Goal, Options, Result, Spread, in_turn, machine, missing, table

__all__ = ["run"]

PASSES = 5
_OPTIMIZER = {"alpha": 0.05, "beta": 1.0, "l2": 1.0}
_FILES = ("a9a", "a9a.t")
_PEER = "scikit-learn"
_FEATURES = 123


def run(options: Options) -> Result:
    """Train on ``a9a``, test on ``a9a.t``.

    Raises:
        FileNotFoundError: the data is not there.
    """
    train, test = _files(options)
    result = Result(
        name="quality",
        options=options,
        conditions={"passes": PASSES, **_OPTIMIZER, "repetitions": options.repetitions, **machine(_PEER)},
        goals=(Goal(what="penstock_auc", least=0.902), Goal(what="penstock_accuracy", least=0.849)),
    )
    contenders = {"penstock": lambda: _ours(train, test)}
    no_peer = missing(_PEER)
    if no_peer is None:
        contenders["scikit-learn"] = lambda: _peer(train, test)
    else:
        result.conditions["missing"] = no_peer
        result.text.append(no_peer)
    found = in_turn(contenders, options.repetitions)
    for name, figures in found.items():
        result.figures |= {f"{name}_{figure}": spread.median for figure, spread in figures.items()}
        if name != "penstock":
            result.ratios[name] = figures["seconds"].median / found["penstock"]["seconds"].median
    result.text.append(_table(found))
    return result


def _files(options: Options) -> tuple[str, str]:
    folder = options.data or Path(os.environ.get("PENSTOCK_DATA") or ROOT.parent / "shared" / "data")
    for name in _FILES:
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} is missing: get {' and '.join(_FILES)} from the LIBSVM data page, and name "
                "their folder with --data or PENSTOCK_DATA"
            )
    train, test = (str(folder / name) for name in _FILES)
    return train, test


def _ours(train: str, test: str) -> dict[str, float]:
    began = time.perf_counter()
    model = ps.Linear(ps.Features(label="label"), optimizer=ps.FTRL(**_OPTIMIZER))
    ps.fit(model, ps.open_source(train, format="libsvm"), passes=PASSES, progress=False)
    seconds = time.perf_counter() - began
    scores = ps.evaluate(model, ps.open_source(test, format="libsvm")).scores()
    return {"auc": scores.auc, "accuracy": scores.accuracy, "logloss": scores.logloss, "seconds": seconds}


def _peer(train: str, test: str) -> dict[str, float]:
    """Time includes reading, as ours does."""
    from sklearn.datasets import load_svmlight_file
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

    began = time.perf_counter()
    model = LogisticRegression(max_iter=1000).fit(*load_svmlight_file(train, n_features=_FEATURES))
    seconds = time.perf_counter() - began
    X, y = load_svmlight_file(test, n_features=_FEATURES)
    scores = model.predict_proba(X)[:, 1]
    return {
        "auc": float(roc_auc_score(y, scores)),
        "accuracy": float(accuracy_score(y, model.predict(X))),
        "logloss": float(log_loss(y, scores)),
        "seconds": seconds,
    }


def _table(found: dict[str, dict[str, Spread]]) -> str:
    rows = [
        (
            name,
            f"{figures['auc'].median:.4f}",
            f"{figures['accuracy'].median:.4f}",
            f"{figures['logloss'].median:.4f}",
            f"{figures['seconds'].median:.2f}",
        )
        for name, figures in found.items()
    ]
    return table(("a9a.t", "AUC", "accuracy", "log loss", "seconds to read and train"), rows)
