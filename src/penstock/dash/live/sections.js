// What the page has of each part of a run, and how it is drawn again when that part has changed.
const store = { sections: {}, series: {}, now: 0, lookedAt: 0 };
const choice = { over: "time", soFar: true, recent: true };
const byId = (id) => document.getElementById(id);

function show(id, wanted) {
  byId(id).hidden = !wanted;
  return wanted;
}

/** A column of the curve, by its name. */
function column(name) {
  const at = store.sections.run.columns.indexOf(name);
  return (store.series.curve || []).map((point) => point[at]);
}

// ---- the head

const STATES = { running: "good", finished: "good", failed: "bad", stopped: "warn", waiting: "warn", unknown: "warn" };
const QUIET_S = 60;

function drawHead() {
  const run = store.sections.run;
  byId("name").textContent = run.name;
  document.title = `${run.name} – penstock dash`;
  const silent = run.reported_at === null ? 0 : store.now - run.reported_at;
  const quiet = run.state === "running" && silent > QUIET_S ? `, no report for ${duration(silent)}` : "";
  byId("state").replaceChildren(
    h("span", { class: `badge ${quiet ? "warn" : STATES[run.state] || "warn"}` }, run.state), ` ${run.detail}${quiet}`);
  const curve = store.series.curve || [];
  const last = curve.length ? Object.fromEntries(run.columns.map((name, n) => [name, curve[curve.length - 1][n]])) : {};
  const speed = speeds(), whole_ = run.done === null || run.done === undefined ? null : percent(run.done);
  const tiles = [
    ["Rows learnt", last.rows, human(last.rows), whole(last.rows)],
    ["Done", whole_, whole_],
    ["Rows/s now", run.state === "running" && speed.length, human(speed[speed.length - 1])],
    ["Rows/s, mean", last.seconds, human(last.rows / last.seconds)],
    ["Log loss", last.logloss, fixed(4)(last.logloss)],
    ["AUC", last.auc, fixed(4)(last.auc)],
    ["Calibration", last.calibration, fixed(3)(last.calibration)],
    ["Features", last.features, human(last.features), whole(last.features)],
    ["Memory", last.memory_nbytes, bytes(last.memory_nbytes)],
    ["Time", last.seconds, shortDuration(last.seconds)],
  ];
  byId("figures").replaceChildren(...tiles.filter(([, known]) => known !== null && known !== undefined && known !== 0 && known !== false).map(
    ([name, , text, title]) => h("div", null, h("dt", null, name), h("dd", { title }, text))));
}

// ---- learning

/** Rows/s at each point, of stretches that are not too short to tell. */
function speeds() {
  const seconds = column("seconds"), rows = column("rows");
  const least = Math.min(60, Math.max(0.4, (seconds[seconds.length - 1] || 0) / 40));
  let from = 0;
  return seconds.map((now, index) => {
    while (from + 1 < index && now - seconds[from + 1] >= least) from += 1;
    if (index === 0) return now > 0 ? rows[0] / now : null;
    return now > seconds[from] ? (rows[index] - rows[from]) / (now - seconds[from]) : null;
  });
}

const LEARNING = [
  { title: "Log loss", scores: "logloss", format: fixed(4), least: 0.005 },
  { title: "AUC", scores: "auc", format: fixed(4), least: 0.005 },
  { title: "Calibration", scores: "calibration", format: fixed(3), least: 0.02, at: 1 },
  { title: "Rows learnt in a second", ys: speeds, format: human },
  { title: "Features", ys: () => column("features"), format: human },
  { title: "Memory", ys: () => column("memory_nbytes"), format: bytes, unit: "B" },
];

function curvesOf(part) {
  if (!part.scores) return [{ label: part.title, style: 0, ys: part.ys() }];
  return [
    ...(choice.soFar ? [{ label: "so far", style: 0, ys: column(part.scores) }] : []),
    ...(choice.recent ? [{ label: "recent", style: 1, thin: true, ys: column(`recent_${part.scores}`) }] : []),
  ];
}

function learningSpec(part) {
  const seconds = column("seconds"), rows = column("rows"), at = column("at");
  const byTime = choice.over === "time", end = (all) => all[all.length - 1] || 1;
  const [unit, name] = timeUnit(end(seconds));
  const xs = byTime ? seconds.map((value) => value / unit) : rows;
  const lines = curvesOf(part);
  const range = part.scores ? settledRange(xs, lines, part.least) : zeroRange(lines);
  const marks = byTime ? bigEvents().map((event) => ({ x: event[0] / unit, bad: BAD.has(event[2]) })) : [];
  return {
    xs, lines, marks, at: part.at,
    x: { high: end(xs), label: byTime ? name : "examples learnt" },
    y: { ...range, unit: part.unit },
    tip: (index) => `${lines.map((line) => `${lines.length > 1 || part.scores ? `${line.label} ` : ""}${part.format(line.ys[index])}`).join(", ")} at ${duration(seconds[index])}, ${human(rows[index])} rows${at[index] ? `, ${clock(at[index])}` : ""}`,
  };
}

/** Those that a curve may show: not each join, version and checkpoint. */
const bigEvents = () => (store.sections.events || []).filter((event) => event[0] !== null && (BAD.has(event[2]) || event[2] === "run")).slice(-40);

function learningFigure(part) {
  return new Figure(part.title, {
    note: part.note,
    draw: (figure, width) => {
      const spec = learningSpec(part);
      figure.setLegend(part.scores ? spec.lines.map((line) => [legendKey(line.style), line.label]) : []);
      return linePlot(figure, width, spec);
    },
    numbers: () => {
      const seconds = column("seconds"), rows = column("rows"), lines = curvesOf(part);
      return {
        columns: [
          { head: "time", cell: (n) => duration(seconds[n]) }, { head: "rows", cell: (n) => whole(rows[n]) },
          ...lines.map((line) => ({ head: line.label, cell: (n) => part.format(line.ys[n]) })),
        ],
        rows: seconds.map((_, n) => n),
      };
    },
  });
}

function control(kind, name, label, checked, onChange) {
  const input = h("input", { type: kind, name, checked });
  input.addEventListener("change", () => { onChange(input.checked); drawLearning(); drawStreams(); });
  return h("label", null, input, ` ${label}`);
}

let learning = null;
function drawLearning() {
  if (!show("learning", (store.series.curve || []).length > 0)) return;
  if (learning === null) {
    learning = LEARNING.map(learningFigure);
    const over = h("fieldset", null, h("legend", null, "Over"),
      control("radio", "over", "time", true, () => { choice.over = "time"; }),
      control("radio", "over", "examples", false, () => { choice.over = "examples"; }));
    const scores = h("fieldset", null, h("legend", null, "Scores"),
      control("checkbox", "so-far", "so far", true, (on) => { choice.soFar = on; }),
      control("checkbox", "recent", "recent", true, (on) => { choice.recent = on; }));
    byId("learning-body").append(h("div", { class: "controls" }, over, scores),
      h("p", { class: "note" }, "Progressive validation: each example is predicted before it is learnt. So far: of all examples; recent: of the last twentieth, or of the last minute where that is less. Scores are of the first pass over the data. Calibration is the sum of predictions over the sum of labels; 1 is right."),
      h("div", { class: "plots three" }, ...learning.map((figure) => figure.element)));
  }
  for (const figure of learning) figure.draw();
}

// ---- events

let line = null;
const eventList = h("div");
function drawEvents() {
  const events = store.sections.events || [];
  if (!show("happened", events.length > 0)) return;
  if (line === null) {
    line = new Figure("Time line", {
      wide: true,
      draw: (figure, width) => {
        const dated = (store.sections.events || []).filter((event) => event[0] !== null);
        const high = Math.max(column("seconds").reduce((a, b) => Math.max(a, b), 0), ...dated.map((event) => event[0]));
        const [unit, name] = timeUnit(high);
        return timeLine(figure, width, dated, high, unit, name);
      },
    });
    byId("happened-body").append(line.element, eventList);
  }
  line.element.hidden = !events.some((event) => event[0] !== null);
  if (!line.element.hidden) line.draw();
  // Versions have a table of their own.
  const told = events.filter((event) => event[2] !== "version").reverse();
  refill(eventList, told.length ? table("Events, newest first", EVENT_COLUMNS, told, (event) => BAD.has(event[2]) ? "bad" : null) : null);
  eventList.firstElementChild?.classList.add("low");
}
const EVENT_COLUMNS = [
  { head: "after", cell: (event) => event[0] === null ? null : duration(event[0]) },
  { head: "kind", text: "short", cell: (event) => (KINDS.find(([kind]) => kind === event[2]) || [])[1] || event[2] },
  { head: "what", text: "long", cell: (event) => event[3] },
  { head: "when (UTC)", cell: (event) => event[1] === null ? null : clock(event[1]) },
];
