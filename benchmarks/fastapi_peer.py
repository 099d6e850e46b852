"""The peer of ``serve-http``: FastAPI and scikit-learn, 39 columns hashed to 2^20 features.

As tutorials write it: a row as a dict, ``FeatureHasher``, ``SGDClassifier.predict_proba``; uvicorn with uvloop and
httptools, one process.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pyarrow.parquet as pq


def main() -> None:
    """``python -m benchmarks.fastapi_peer FILE``: learn a file's first rows, then serve."""
    import socket

    import uvicorn
    from fastapi import FastAPI
    from sklearn.feature_extraction import FeatureHasher
    from sklearn.linear_model import SGDClassifier

    table = pq.read_table(sys.argv[1]).slice(0, 50_000)
    labels = table["clicked"].to_numpy()
    rows = table.drop_columns(["clicked", "time"]).to_pylist()
    hasher = FeatureHasher(n_features=1 << 20, input_type="dict")

    def known(row: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in row.items() if value is not None}

    model = SGDClassifier(loss="log_loss", random_state=0)
    model.fit(hasher.transform(known(row) for row in rows), labels)
    app = FastAPI()

    @app.post("/predict")
    async def predict(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
        features = hasher.transform([known(row) for row in rows])
        return {"predictions": np.asarray(model.predict_proba(features)[:, 1]).tolist()}

    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(f"listening at http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(app, loop="uvloop", http="httptools", log_level="error", access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
