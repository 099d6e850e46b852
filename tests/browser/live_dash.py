"""A browser, and runs that want to break a page: names too long, markup, many servers, days of points."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.dash.live.helpers import BEGAN, cluster_line_of, line_of, manifest_of, server_of, worker_of, write_lines
from tests.log.helpers import process

NASTY = "<img src=x onerror='alerted=1'><script>alerted=1</script>\"'&\u202e" + "y" * 60

# Text that lies on other text, or beyond its drawing or the window; fonts too small to read.
LAYOUT = """() => {
  const overlapping = [], cut = [], small = [];
  const shown = (element) => element.getClientRects().length > 0;
  for (const drawing of document.querySelectorAll(".plot svg")) {
    if (!shown(drawing)) continue;
    const outer = drawing.getBoundingClientRect();
    const all = [...drawing.querySelectorAll("text")];
    const texts = all.map((one) => [one.textContent, one.getBoundingClientRect()]);
    texts.forEach(([text, box], index) => {
      if (box.left < outer.left - 1 || box.right > outer.right + 1) cut.push(text);
      if (box.top < outer.top - 1 || box.bottom > outer.bottom + 1) cut.push(text);
      for (const [other, its] of texts.slice(index + 1)) {
        const across = box.left < its.right - 1 && its.left < box.right - 1;
        if (across && box.top < its.bottom - 2 && its.top < box.bottom - 2) overlapping.push([text, other]);
      }
    });
    for (const text of all) {
      if (parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a < 11) small.push(text.textContent);
    }
  }
  for (const tile of document.querySelectorAll(".tiles dd, .tiles dt")) {
    const range = document.createRange();
    range.selectNodeContents(tile);
    const right = tile.parentElement.getBoundingClientRect().right;
    if (range.getBoundingClientRect().right > right) cut.push(tile.textContent);
  }
  return { overlapping, cut, small, width: document.documentElement.scrollWidth, window: window.innerWidth };
}"""


def busy_folder(folder: Path) -> Path:
    """A run of two days, in the folder, with everything that a page can show."""
    progress, cluster = [], []
    for n in range(1, 3000):
        seconds, rows = 60.0 * n, 10_000 * n
        loss = 0.45 + 0.2 / n**0.5
        streams = {
            name: {
                "events": rows,
                "watermark": "2027-01-15T08:00:00Z",
                "lag_s": 3.0 + k + n % 7,
                "source": NASTY,
                "why": NASTY,
            }
            for k, name in enumerate(("impressions", "clicks", NASTY))
        }
        pipeline = {"step": n, "sealed_to": "2027-01-15T08:00:00Z", "quarantined": n, "streams": streams}
        scores = {
            "rows": rows,
            "weight": float(rows),
            "logloss": loss,
            "auc": 0.8 - loss / 10,
            "calibration": 1 + 1 / n,
        }
        progress.append(line_of(seconds, rows, progressive=scores, pipeline=pipeline, features=1000 * n))
    events = [
        [BEGAN + 100, f"{NASTY} joined"],
        [BEGAN + 50_000, f"{NASTY} is out (silent for 5.1 s); 3 of its micro-batches go to others"],
        [BEGAN + 50_001, "server-2 takes over its segments"],
        [BEGAN + 90_000, f"checkpoint failed: {NASTY}"],
        [BEGAN + 90_300, "checkpoint 3"],
    ]
    servers = [
        server_of(name, staleness={str(k): 5000 // (k + 1) for k in range(90)})
        for name in (*(f"server-{n}" for n in range(13)), NASTY)
    ]
    waits = {"pull": 40_000.0, "read": 9_000.0, "work": 12.0, NASTY: 5_000.0}
    workers = [
        worker_of(f"worker-trainer-{n}.example.internal-{7000 + n}", clock=10_000 - n, rows=n, waits=waits)
        for n in range(12)
    ]
    workers.append(worker_of(NASTY, clock=1, rows=1))
    status = {"servers": servers, "workers": workers, "hot": [[2**63 + 2, NASTY, 0.5]], "checkpoint": 3}
    cluster = cluster_line_of(179_000.0, 29_990_000, events=events, **status)
    cluster["owners"] = [n * 7 % 14 for n in range(1024)]
    write_lines(folder / "progress.jsonl", *progress)
    write_lines(folder / "cluster.jsonl", cluster)
    (folder / "versions").mkdir()
    for n in range(1, 40):
        text = json.dumps(
            manifest_of(
                n,
                f"2027-01-15T{8 + n // 60:02d}:{n % 60:02d}:00+00:00",
                lineage={"rows": n, "newest_event": NASTY},
            )
        )
        (folder / "versions" / f"v{n:06d}.json").write_text(text)
    (folder / "manifest.json").write_text(json.dumps(manifest_of(40, metrics={"holdout": {"logloss": 0.4}})))
    (folder / "pin.json").write_text('{"version": 38}')
    return folder


@contextlib.contextmanager
def dashing(*arguments: object, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``penstock dash`` as a process, and the address that it said."""
    with process("dash", *arguments, "--port", port) as running:
        assert running.stdout is not None
        said = running.stdout.readline()
        found = re.match(r"listening at (\S+?);?\s", said)
        assert found, (said, running.communicate(timeout=10))
        yield running, found[1]


class Watched:
    """What a page logged, asked for and got."""

    def __init__(self, page: Any) -> None:
        self.errors: list[str] = []
        self.asked: list[str] = []
        self.answers: list[dict[str, Any]] = []
        page.on(
            "console",
            lambda message: self.errors.append(message.text) if message.type in ("error", "warning") else None,
        )
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", lambda dialog: self.errors.append(f"dialog {dialog.message}"))
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("response", self._answered)

    def _answered(self, response: Any) -> None:
        if "/data" in response.url and response.status == 200:
            with contextlib.suppress(Exception):  # a page that was closed has no bodies any more
                self.answers.append(response.json())
