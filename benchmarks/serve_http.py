"""A row of 39 features a request, over HTTP: at full load, and at a fixed rate; beside FastAPI and scikit-learn.

``wrk`` asks on 64 connections as fast as it is answered; ``h2load --h1`` asks 1,000 times a second. Both, and the
server, share the machine's cores.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from benchmarks.harness import Goal, Options, Result, in_turn, machine, missing, table
from benchmarks.serving import at_rate, bodies_file, model_folder, serving, table_of

__all__ = ["run"]

CONNECTIONS = 64
RATE = 1000


def run(options: Options) -> Result:
    """Ours and the peer in turn, each with both kinds of load."""
    rows = 200_000 if options.quick else 10_000_000
    seconds = 2 if options.quick else 10
    repetitions = 1 if options.quick else 3
    result = Result(
        name="serve-http",
        options=options,
        conditions={
            "model_rows": rows,
            "connections": CONNECTIONS,
            "rate": RATE,
            "seconds": seconds,
            "repetitions": repetitions,
            **machine("uvicorn", "httptools", "uvloop", "fastapi", "scikit-learn"),
        },
        goals=(
            Goal(what="penstock_requests_per_s", least=4000),
            Goal(what="penstock_p99_ms", most=25),
            Goal(what="penstock_at_rate_p99_ms", most=4),
            Goal(what="fastapi", least=3),
        ),
    )
    tools = [tool for tool in ("wrk", "h2load") if shutil.which(tool) is None]
    if tools:
        result.text.append(f"not there: {', '.join(tools)} (packages wrk, nghttp2-client): nothing was measured")
        return result
    bodies = bodies_file()
    peer_missing = missing("fastapi") or missing("scikit-learn")
    with serving("-m", "penstock.cli.main", "serve", str(model_folder(rows)), "--port", "0") as ours:
        contenders = {"penstock": lambda: _load(ours, bodies, seconds)}
        if peer_missing is None:
            with serving("-m", "benchmarks.fastapi_peer", str(table_of(1_000_000))) as peer:
                contenders["fastapi, scikit-learn"] = lambda: _load(peer, bodies, seconds)
                found = in_turn(contenders, repetitions)
        else:
            result.text.append(peer_missing)
            found = in_turn(contenders, repetitions)
    for name, figures in found.items():
        for figure, spread in figures.items():
            result.figures[f"{name.partition(',')[0]}_{figure}"] = spread.median
    if peer_missing is None:
        result.ratios["fastapi"] = (
            result.figures["penstock_requests_per_s"] / result.figures["fastapi_requests_per_s"]
        )
    result.text.append(
        table(
            ("", "requests/s", "p50 ms", "p99 ms", f"p50 ms at {RATE}/s", "p99 ms", "answered/s"),
            [
                (
                    name,
                    f"{f['requests_per_s'].median:,.0f}",
                    f"{f['p50_ms'].median:.1f}",
                    f"{f['p99_ms'].median:.1f}",
                    f"{f['at_rate_p50_ms'].median:.2f}",
                    f"{f['at_rate_p99_ms'].median:.2f}",
                    f"{f['at_rate_requests_per_s'].median:,.0f}",
                )
                for name, f in found.items()
            ],
        )
    )
    return result


def _load(port: int, bodies: Path, seconds: int) -> dict[str, float]:
    fixed = {f"at_rate_{name}": value for name, value in at_rate(port, bodies, RATE, seconds).items()}
    return {**_full(port, bodies, seconds), **fixed}


_SCRIPT = """
local bodies, at = {}, 0
for line in io.lines("%s") do bodies[#bodies + 1] = line end
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
request = function()
  at = at %% #bodies + 1
  return wrk.format(nil, "/predict", nil, bodies[at])
end
done = function(summary, latency, requests)
  local bad = summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.timeout
  print(string.format("found %%d %%d %%f %%f %%d", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), bad))
end
"""


def _full(port: int, bodies: Path, seconds: int) -> dict[str, float]:
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_SCRIPT % bodies)
        script.flush()
        ran = subprocess.run(
            ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", script.name, f"http://127.0.0.1:{port}/"],
            capture_output=True,
            text=True,
            check=True,
        )
    [found] = re.findall(r"^found (\S+) (\S+) (\S+) (\S+) (\S+)$", ran.stdout, re.MULTILINE)
    requests, duration_us, p50_us, p99_us, bad = map(float, found)
    if bad:
        raise RuntimeError(f"{bad:.0f} requests failed: {ran.stdout}")
    return {"requests_per_s": requests / duration_us * 1e6, "p50_ms": p50_us / 1000, "p99_ms": p99_us / 1000}
