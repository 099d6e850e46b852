// The parts for who operates it: the cluster, the streams, versions and servers.

// ---- the cluster

const CAUSES = ["busy", "pull", "read", "work"];
const SILENT_S = 2;
let cluster = null;

function heartbeat(one) {
  if (one.gone) return h("span", { class: "badge bad" }, "out");
  const phase = store.sections.cluster.phase, over = ["done", "stopped", "failed"].includes(phase);
  return over ? phase : `${one.heartbeat_s.toFixed(1)} s ago`;
}

const SERVER_COLUMNS = [
  { head: "server", cell: (one) => h("span", { class: "keyed" }, swatch(one.number, one.number % (2 * COLOURS) >= COLOURS), named(one.name)) },
  { head: "segments", cell: (one) => whole(one.segments), explanation: "Slices of the hash space that it holds." },
  { head: "rows", cell: (one) => human(one.rows), explanation: "Features that have a row there." },
  { head: "memory", cell: (one) => bytes(one.memory_nbytes), explanation: "Largest resident size so far." },
  { head: "keys/s", cell: (one) => human(one.keys_per_s), explanation: "Keys pulled a second, lately: its load." },
  { head: "keys pulled", cell: (one) => human(one.pulled_keys) },
  { head: "received", cell: (one) => bytes(one.bytes_in) },
  { head: "sent", cell: (one) => bytes(one.bytes_out) },
  { head: "staleness, median", cell: (one) => one.staleness[0], explanation: "Updates applied between a micro-batch's pull and its push." },
  { head: "most", cell: (one) => one.staleness[1] },
  { head: "clock done", cell: (one) => one.complete === null ? null : whole(one.complete), explanation: "Clocks below it are applied here." },
  { head: "pulls held", cell: (one) => whole(one.waiting), explanation: "Pulls that wait for a clock." },
  { head: "heard", cell: heartbeat, explanation: "Since its last heartbeat." },
  { head: "address", text: "short", cell: (one) => one.address },
];
const WORKER_COLUMNS = [
  { head: "worker", cell: (one) => named(one.name) },
  { head: "clock", cell: (one) => one.clock === null ? null : whole(one.clock), explanation: "The clock after the highest that it did." },
  { head: "behind", cell: (one) => one.behind === null ? null : whole(one.behind), explanation: "Clocks behind the worker that is furthest." },
  { head: "rows/s", cell: (one) => human(one.rows_per_s), explanation: "Lately." },
  { head: "rows", cell: (one) => human(one.rows) },
  { head: "micro-batches", cell: (one) => whole(one.done) },
  { head: "taken over", cell: (one) => whole(one.stolen), explanation: "Micro-batches of lanes of others." },
  { head: "busy", cell: (one) => duration(one.busy_s), explanation: "Time in which it computed gradients." },
  { head: "waited", cell: (one) => duration(Object.values(one.waits).reduce((a, b) => a + b, 0)), explanation: "For all causes; the plot has each." },
  { head: "memory", cell: (one) => bytes(one.memory_nbytes) },
  { head: "received", cell: (one) => bytes(one.bytes_in) },
  { head: "sent", cell: (one) => bytes(one.bytes_out) },
  { head: "heard", cell: heartbeat },
];
const WAIT_ROWS = 24;

const numbered = () => store.sections.cluster.servers.map((one, number) => ({ ...one, number }));
const silent = (one) => one.gone || (one.heartbeat_s > SILENT_S && store.sections.run.state === "running") ? "bad" : null;

function waitCauses() {
  const known = store.sections.cluster.waits;
  return ["busy", ...CAUSES.filter((cause) => known.includes(cause)), ...known.filter((cause) => !CAUSES.includes(cause))];
}

const spent = (one, cause) => (cause === "busy" ? one.busy_s : one.waits[cause]) || 0;

function clusterFigures() {
  const ring = new Figure("Ring of segments", {
    note: "Which server holds each slice of the hash space.",
    draw: (figure, width) => {
      const names = store.sections.cluster.servers.map((one) => one.name);
      figure.setLegend(names.slice(0, 24).map((name, n) => [swatch(n, n % (2 * COLOURS) >= COLOURS), name]));
      return segmentRing(figure, width, store.sections.ring || [], names);
    },
    numbers: () => ({ columns: SERVER_COLUMNS.slice(0, 6), rows: numbered() }),
  });
  const columns = () => {
    const found = store.sections.cluster.staleness, total = found.reduce((sum, [, n]) => sum + n, 0);
    return found.map(([text, n]) => ({ text, n, share: n / total, tip: `${text} updates behind: ${percent(n / total)} of pushes (${whole(n)})` }));
  };
  const staleness = new Figure("Staleness", {
    note: "Share of pushes by how many updates were applied between their pull and them, at all servers.",
    draw: (figure, width) => { figure.setLegend([]); return histogram(figure, width, columns(), "updates behind"); },
    numbers: () => ({ columns: [{ head: "updates behind", cell: (c) => c.text }, { head: "pushes", cell: (c) => whole(c.n) }, { head: "share", cell: (c) => percent(c.share) }], rows: columns() }),
  });
  const waits = new Figure("What workers did with their time", {
    note: "Seconds so far. Busy: computing; pull: waiting for rows; read: waiting for data; work: waiting to be given some.",
    draw: (figure, width) => {
      const causes = waitCauses();
      figure.setLegend(causes.map((cause, n) => [swatch(n), cause]));
      return stackedBars(figure, width, store.sections.cluster.workers.slice(0, WAIT_ROWS).map((one) => ({
        label: one.name,
        parts: causes.map((cause, style) => ({ value: spent(one, cause), style, tip: `${one.name}: ${cause} ${duration(spent(one, cause))}` })),
        text: shortDuration(causes.reduce((sum, cause) => sum + spent(one, cause), 0)),
      })));
    },
    numbers: () => ({
      columns: [{ head: "worker", cell: (one) => named(one.name) }, ...waitCauses().map((cause) => ({ head: `${cause}, s`, cell: (one) => spent(one, cause).toFixed(1) }))],
      rows: store.sections.cluster.workers,
    }),
  });
  return { ring, staleness, waits };
}

function drawCluster() {
  const found = store.sections.cluster;
  if (!show("cluster", Boolean(found))) return;
  if (cluster === null) {
    cluster = { ...clusterFigures(), facts: h("p"), tables: h("div") };
    byId("cluster-body").append(cluster.facts, cluster.tables,
      h("div", { class: "plots three" }, cluster.ring.element, cluster.staleness.element, cluster.waits.element));
    // The arcs of a server stand out while its line in the table has the pointer.
    cluster.tables.addEventListener("pointerover", (event) => pickOut(event.target.closest("tr")));
    cluster.tables.addEventListener("pointerleave", () => pickOut(null));
  }
  cluster.facts.textContent = [
    found.phase, found.consistency, found.clock === null ? null : `clock ${whole(found.clock)}`,
    found.checkpoint === null ? "no checkpoint yet" : `checkpoint ${found.checkpoint}`,
    found.skew.rows ? `fullest server: ${found.skew.rows.toFixed(2)} x the mean of rows` : null,
    found.skew.load ? `${found.skew.load.toFixed(2)} x the mean of keys pulled` : null,
  ].filter(Boolean).join(" · ");
  refill(cluster.tables,
    h("h3", null, "Servers"), table("Servers", SERVER_COLUMNS, numbered(), silent),
    h("h3", null, "Workers"), table("Workers", WORKER_COLUMNS, found.workers, silent),
    found.hot.length ? h("details", { id: "hot", open: byId("hot")?.open }, h("summary", null, "Keys that most micro-batches ask for"), table("Hot keys", HOT_COLUMNS, found.hot)) : null);
  cluster.ring.element.hidden = !(store.sections.ring || []).length;
  cluster.staleness.element.hidden = !found.staleness.length;
  cluster.waits.element.hidden = !found.workers.length;
  for (const figure of [cluster.ring, cluster.staleness, cluster.waits]) if (!figure.element.hidden) figure.draw();
}
const HOT_COLUMNS = [
  { head: "key", cell: ([key]) => key }, { head: "table", text: "short", cell: ([, of]) => of }, { head: "share of pulls", cell: ([, , share]) => percent(share) },
];

function pickOut(row) {
  const rows = row ? [...row.parentElement.children] : [];
  const number = row && row.closest("[aria-label=Servers]") ? rows.indexOf(row) : -1;
  for (const arc of cluster.ring.host.querySelectorAll(".arc")) {
    arc.classList.toggle("faint", number >= 0 && Number(arc.dataset.server) !== number && row.parentElement.tagName === "TBODY");
  }
}

// ---- streams

const STREAM_COLUMNS = [
  { head: "stream", cell: ([name]) => named(name) },
  { head: "events", cell: ([, one]) => one.events === null ? null : whole(one.events) },
  { head: "watermark (UTC)", cell: ([, one]) => clock(one.watermark), explanation: "Up to which event time the stream is complete." },
  { head: "lag", cell: ([, one]) => duration(one.lag_s), explanation: "How far the watermark was behind the clock, at the last report." },
  { head: "held by", text: "short", cell: ([, one]) => named(one.source || NONE) },
  { head: "why", text: "long", cell: ([, one]) => one.why },
];
let streams = null;

function lagSpec() {
  const names = store.sections.run.streams, columns = store.sections.run.columns.length;
  const points = (store.series.curve || []).filter((point) => point.slice(columns).some((lag) => lag !== null));
  const seconds = points.map((point) => point[0]);
  const [unit, name] = timeUnit(seconds[seconds.length - 1] || 1);
  const all = points.flatMap((point) => point.slice(columns)).filter((lag) => lag !== null);
  const [lagUnit, lagName] = timeUnit(all.reduce((a, b) => Math.max(a, b), 0));
  const lines = names.map((label, n) => ({ label, style: n, ys: points.map((point) => point[columns + n] === null || point[columns + n] === undefined ? null : point[columns + n] / lagUnit) }));
  return {
    xs: seconds.map((value) => value / unit), lines, lagName, seconds, lagUnit,
    x: { low: seconds.length ? 0 : undefined, high: (seconds[seconds.length - 1] || 1) / unit, label: name }, y: zeroRange(lines),
    tip: (index) => `${lines.map((line) => `${line.label} ${line.ys[index] === null ? NONE : duration(line.ys[index] * lagUnit)}`).join(", ")} behind at ${duration(seconds[index])}`,
  };
}

function drawStreams() {
  const found = store.sections.streams;
  if (!show("streams", Boolean(found))) return;
  if (streams === null) {
    const lag = new Figure("Lag of the watermarks", {
      wide: true,
      draw: (figure, width) => {
        const spec = lagSpec();
        figure.setLegend([...spec.lines.map((one) => [legendKey(one.style), one.label]), ["", `in ${spec.lagName}`]]);
        return linePlot(figure, width, spec);
      },
      numbers: () => {
        const spec = lagSpec();
        return {
          columns: [{ head: "time", cell: (n) => duration(spec.seconds[n]) }, ...spec.lines.map((one) => ({ head: one.label, cell: (n) => one.ys[n] === null ? null : duration(one.ys[n] * spec.lagUnit) }))],
          rows: spec.seconds.map((_, n) => n),
        };
      },
    });
    streams = { lag, facts: h("p"), table: h("div") };
    byId("streams-body").append(streams.facts, streams.table, lag.element);
  }
  streams.facts.textContent = [
    found.sealed_to ? `windows are sealed to ${clock(found.sealed_to)} UTC` : "no window is sealed yet",
    found.step === null ? null : `step ${whole(found.step)}`,
    found.quarantined === null ? null : `${whole(found.quarantined)} events quarantined since it began`,
  ].filter(Boolean).join(" · ");
  refill(streams.table, table("Streams", STREAM_COLUMNS, Object.entries(found.streams)));
  streams.lag.draw();
}

// ---- versions and servers

const score = (name, digits) => (one) => one[name] === null || one[name] === undefined ? null : fixed(digits)(one[name]);
const VERSION_COLUMNS = [
  { head: "version", cell: (one) => h("span", null, String(one.version), one.version === store.sections.versions.pinned ? h("span", { class: "badge warn" }, "pinned") : null) },
  { head: "written (UTC)", cell: (one) => clock(one.created) },
  { head: "rows learnt", cell: (one) => one.rows === null ? null : human(one.rows) },
  { head: "features", cell: (one) => human(one.features) },
  { head: "log loss", cell: score("logloss", 4) },
  { head: "AUC", cell: score("auc", 4) },
  { head: "calibration", cell: score("calibration", 3) },
  { head: "hold-out log loss", cell: score("holdout_logloss", 4) },
  { head: "hold-out AUC", cell: score("holdout_auc", 4) },
  { head: "newest event (UTC)", cell: (one) => clock(one.newest_event) },
  { head: "watermark (UTC)", cell: (one) => clock(one.watermark) },
];
const OPTIONAL = { "hold-out log loss": "holdout_logloss", "hold-out AUC": "holdout_auc", "newest event (UTC)": "newest_event", "watermark (UTC)": "watermark" };

function drawVersions() {
  const found = store.sections.versions?.versions || [];
  if (!show("versions", found.length > 0)) return;
  const columns = VERSION_COLUMNS.filter((one) => !(one.head in OPTIONAL) || found.some((version) => version[OPTIONAL[one.head]] !== null));
  refill(byId("versions-body"), h("p", { class: "note" }, "Scores are progressive unless they say hold-out, newest version first."), table("Versions", columns, found));
  byId("versions-body").lastElementChild.classList.add("low");
}

const SERVING_COLUMNS = [
  { head: "model", cell: (one) => named(one.model ?? NONE) },
  { head: "role", text: "short", cell: (one) => one.role },
  { head: "version", cell: (one) => one.error ? h("span", { class: "badge bad" }, "no answer") : h("span", null, one.version, one.behind ? h("span", { class: "badge warn" }, `${one.behind} behind`) : null) },
  { head: "written", cell: (one) => ago(one.age_s), explanation: "Age of the version that answers." },
  { head: "newest event", cell: (one) => ago(one.newest_event_age_s), explanation: "Age of the newest event that the version has learnt." },
  { head: "at answers, median", cell: (one) => one.freshness_s ? duration(one.freshness_s[0] ?? NaN) : null, explanation: "Age of the newest event that the version had learnt, at each of its answers." },
  { head: "95 %", cell: (one) => one.freshness_s ? duration(one.freshness_s[1] ?? NaN) : null },
  { head: "refused", cell: (one) => one.refused === null || one.refused === undefined ? null : whole(one.refused), explanation: "Versions that it did not switch to." },
  { head: "rows scored", cell: (one) => human(one.rows) },
  { head: "server", text: "short", cell: (one) => named(one.url) },
];
const ago = (seconds) => Number.isFinite(seconds) ? `${duration(seconds)} ago` : null;

function servingRows() {
  // A moment later than it was written a version is no news: servers look for it, and are asked, now and then.
  const published = (store.sections.versions?.versions || []).filter((one) => one.created_s === null || one.created_s + SETTLED_S < store.now);
  const behind = (version) => published.filter((one) => one.version > Number(version)).length;
  return (store.sections.serving || []).flatMap((server) => (server.models?.length ? server.models : [{}]).map((model) => ({
    ...model, url: server.url, error: server.error, behind: behind(model.version),
  })));
}

const SETTLED_S = 8;
let serving = null;
function ageSpec() {
  const names = Object.keys(store.series).filter((name) => name.startsWith("age of ") && store.series[name].length);
  const xs = [...new Set(names.flatMap((name) => store.series[name].map((point) => point[0])))].sort((a, b) => a - b);
  const begin = xs[0] || 0, [unit, name] = timeUnit((xs[xs.length - 1] || 1) - begin);
  let most = 0;
  const lines = names.map((of, style) => {
    const known = store.series[of], ys = new Array(xs.length).fill(null);
    let at = 0;
    xs.forEach((when, n) => {
      while (at + 1 < known.length && known[at + 1][0] <= when) at += 1;
      // Between two answers of this server the last one has grown older.
      if (known[at][0] <= when && when - known[at][0] < 60) ys[n] = (known[at][1] ?? known[at][2]) + when - known[at][0];
      most = Math.max(most, ys[n] || 0);
    });
    return { label: of.slice("age of ".length), style, ys };
  });
  const [ageUnit, ageName] = timeUnit(most);
  for (const one of lines) one.ys = one.ys.map((value) => value === null ? null : value / ageUnit);
  return {
    xs: xs.map((when) => (when - begin) / unit), lines, ageName, when: xs, ageUnit, x: { high: Math.max(1e-3, ((xs[xs.length - 1] || 1) - begin) / unit), label: `${name} since ${clock(begin)} UTC` }, y: zeroRange(lines),
    tip: (index) => `${lines.map((one) => `${one.label}: ${one.ys[index] === null ? NONE : duration(one.ys[index] * ageUnit)}`).join(", ")} at ${clock(xs[index])}`,
  };
}

function drawServing() {
  const found = store.sections.serving || [];
  if (!show("serving", found.length > 0)) return;
  if (serving === null) {
    const ages = new Figure("Age of what answers", {
      note: "Of the newest event that the answering version has learnt; where a server does not say, of the version.",
      wide: true,
      draw: (figure, width) => {
        const spec = ageSpec();
        figure.setLegend([...spec.lines.map((one) => [legendKey(one.style), one.label]), ["", `in ${spec.ageName}`]]);
        return linePlot(figure, width, spec);
      },
      numbers: () => {
        const spec = ageSpec();
        return { columns: [{ head: "when (UTC)", cell: (n) => clock(spec.when[n]) }, ...spec.lines.map((one) => ({ head: one.label, cell: (n) => one.ys[n] === null ? null : duration(one.ys[n] * spec.ageUnit) }))], rows: spec.when.map((_, n) => n) };
      },
    });
    serving = { table: h("div"), ages };
    byId("serving-body").append(serving.table, ages.element);
  }
  const rows = servingRows();
  refill(serving.table, ...found.filter((one) => one.error).map((one) => h("p", { class: "failed" }, `${one.url} ${one.error}`)), table("Servers that answer", SERVING_COLUMNS, rows, (one) => one.error ? "bad" : null));
  serving.ages.element.hidden = !Object.keys(store.series).some((name) => name.startsWith("age of ") && store.series[name].length > 1);
  if (!serving.ages.element.hidden) serving.ages.draw();
}
