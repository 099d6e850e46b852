// The other drawings: a ring of segments, bars, stacked bars, a time line of events.

/** Columns [{text, share, tip}] of one colour. */
function histogram(figure, width, columns, xLabel) {
  const height = 200, left = 58, right = width - 14, top = 12, bottom = height - 38;
  const high = columns.reduce((most, column) => Math.max(most, column.share), 0) || 1;
  const y = axis(0, 1.05 * high, bottom, top), step = (right - left) / Math.max(1, columns.length);
  const ticks = ticksOf(0, 100 * y.high, 5), parts = [];
  written(ticks).forEach((text, n) => parts.push(
    s("path", { d: `M${left} ${y(ticks[n] / 100).toFixed(1)}H${right}`, class: "grid" }),
    s("text", { x: left - 6, y: (y(ticks[n] / 100) + 4).toFixed(1), "text-anchor": "end", class: "tick" }, `${text} %`)));
  const longest = columns.reduce((most, column) => Math.max(most, column.text.length), 1);
  const every = Math.ceil((7 * longest + 8) / step);
  columns.forEach((column, n) => {
    const at = left + n * step;
    parts.push(s("rect", { x: (at + 0.1 * step).toFixed(1), width: (0.8 * step).toFixed(1), y: y(column.share).toFixed(1), height: (bottom - y(column.share)).toFixed(1), class: "bar c0" }));
    // The whole column answers to the pointer, however low it is.
    parts.push(s("rect", { x: at.toFixed(1), width: step.toFixed(1), y: top, height: bottom - top, class: "hit", "data-tip": column.tip }));
    if (n % every === 0) parts.push(s("text", { x: (at + step / 2).toFixed(1), y: bottom + 17, "text-anchor": "middle", class: "tick" }, column.text));
  });
  parts.push(s("path", { d: `M${left} ${bottom}H${right}`, class: "axis" }),
    s("text", { x: (left + right) / 2, y: bottom + 33, "text-anchor": "middle", class: "label" }, xLabel));
  const said = `${figure.title}. ${columns.map((column) => column.tip).slice(0, 12).join("; ")}`;
  figure.width = width;
  return s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": said }, ...parts);
}

/** Horizontal bars [{label, parts: [{value, style, tip}], text}], their parts one after the other. */
function stackedBars(figure, width, bars) {
  const left = Math.min(130, Math.floor(0.3 * width)), right = width - 14 - 7 * bars.reduce((most, bar) => Math.max(most, bar.text.length), 4), step = 26, height = 8 + step * bars.length;
  const sum = (bar) => bar.parts.reduce((total, part) => total + part.value, 0);
  const x = axis(0, bars.reduce((most, bar) => Math.max(most, sum(bar)), 0) || 1, left, right);
  const parts = [];
  bars.forEach((bar, row) => {
    const y = 4 + row * step;
    parts.push(s("text", { x: left - 8, y: y + 16, "text-anchor": "end" }, shortened(bar.label, Math.max(4, Math.floor((left - 12) / 8)))));
    let from = 0;
    for (const part of bar.parts) {
      parts.push(s("rect", { x: x(from).toFixed(1), y: y + 2, height: step - 8, width: Math.max(0, x(from + part.value) - x(from)).toFixed(1), class: `bar c${part.style % COLOURS}`, "data-tip": part.tip }));
      from += part.value;
    }
    parts.push(s("text", { x: (x(from) + 6).toFixed(1), y: y + 16, class: "tick" }, bar.text));
  });
  figure.width = width;
  const said = `${figure.title}. ${bars.slice(0, 12).map((bar) => `${bar.label}: ${bar.text}`).join("; ")}`;
  return s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": said }, ...parts);
}

/** The hash space as a ring: runs [server, segments] of ``names``, in the order of the hash. */
function segmentRing(figure, width, runs, names) {
  const size = Math.min(width, 300), middle = size / 2, outer = middle - 4, inner = 0.68 * outer;
  const total = runs.reduce((sum, [, n]) => sum + n, 0);
  const place = (segment, radius) => {
    const angle = 2 * Math.PI * segment / total;
    return `${(middle + radius * Math.sin(angle)).toFixed(2)} ${(middle - radius * Math.cos(angle)).toFixed(2)}`;
  };
  const parts = [];
  let from = 0;
  for (const [server, n] of runs) {
    const to = from + n, large = n > total / 2 ? 1 : 0;
    const d = n === total
      ? `M${place(0, outer)}A${outer} ${outer} 0 1 1 ${place(total / 2, outer)}A${outer} ${outer} 0 1 1 ${place(0, outer)}ZM${place(0, inner)}A${inner} ${inner} 0 1 0 ${place(total / 2, inner)}A${inner} ${inner} 0 1 0 ${place(0, inner)}Z`
      : `M${place(from, outer)}A${outer} ${outer} 0 ${large} 1 ${place(to, outer)}L${place(to, inner)}A${inner} ${inner} 0 ${large} 0 ${place(from, inner)}Z`;
    const which = n === 1 ? `segment ${from}` : `segments ${from}–${to - 1}`;
    parts.push(s("path", { d, class: `bar c${server % COLOURS}${server % (2 * COLOURS) >= COLOURS ? " pale" : ""} arc`, "data-server": server, "data-tip": `${names[server] ?? `server ${server}`}: ${which} of ${total}` }));
    from = to;
  }
  parts.push(s("text", { x: middle, y: middle - 2, "text-anchor": "middle", class: "large" }, whole(total)),
    s("text", { x: middle, y: middle + 18, "text-anchor": "middle", class: "tick" }, "segments"));
  figure.width = width;
  const counts = new Map();
  for (const [server, n] of runs) counts.set(server, (counts.get(server) || 0) + n);
  const said = [...counts].sort((a, b) => a[0] - b[0]).map(([server, n]) => `${names[server] ?? server} ${n}`).join(", ");
  return s("svg", { viewBox: `0 0 ${size} ${size}`, class: "ring", role: "img", "aria-label": `${figure.title}: ${said}` }, ...parts);
}

const KINDS = [
  ["run", "run", 5], ["join", "joined", 2], ["loss", "lost", 1], ["failover", "failover", 3], ["failure", "failure", 1],
  ["checkpoint", "checkpoint", 0], ["version", "version", 0], ["served", "served", 2],
];
const BAD = new Set(["loss", "failure", "failover"]);

/** Events [seconds, since 1970, kind, text] in a lane for each kind that occurs. */
function timeLine(figure, width, events, high, unit, unitName) {
  const lanes = KINDS.filter(([kind]) => events.some((event) => event[2] === kind));
  const left = 92, right = width - 14, top = 6, step = 26, bottom = top + step * lanes.length, height = bottom + 40;
  const x = axis(0, Math.max(high / unit, 1e-6), left, right), parts = [];
  lanes.forEach(([kind, word, style], lane) => {
    const y = top + lane * step + step / 2;
    parts.push(s("path", { d: `M${left} ${y}H${right}`, class: "grid" }),
      s("text", { x: left - 8, y: y + 4, "text-anchor": "end" }, word));
    for (const [seconds, at, of, text] of events) {
      if (of !== kind) continue;
      const place = x(Math.min(seconds / unit, x.high)).toFixed(1), when = at === null ? duration(seconds) : `${clock(at)} (${duration(seconds)})`;
      const shape = BAD.has(kind) ? `M${place - 5} ${y - 5}l10 10M${place - 5} ${y + 5}l10 -10` : `M${place - 4} ${y}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z`;
      parts.push(s("path", { d: shape, class: BAD.has(kind) ? `cross c${style}` : `mark c${style}` }));
      parts.push(s("rect", { x: place - 8, y: y - 9, width: 16, height: 18, class: "hit", "data-tip": `${when}: ${text}` }));
    }
  });
  const ticks = ticksOf(0, x.high, Math.max(2, Math.floor((right - left) / 75)));
  written(ticks).forEach((text, n) => parts.push(
    s("path", { d: `M${x(ticks[n]).toFixed(1)} ${bottom}v4`, class: "axis" }),
    s("text", { x: x(ticks[n]).toFixed(1), y: bottom + 17, "text-anchor": "middle", class: "tick" }, text)));
  parts.push(s("path", { d: `M${left} ${bottom}H${right}`, class: "axis" }),
    s("text", { x: (left + right) / 2, y: bottom + 33, "text-anchor": "middle", class: "label" }, unitName));
  figure.width = width;
  const said = lanes.map(([kind, word]) => `${events.filter((event) => event[2] === kind).length} ${word}`).join(", ");
  return s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${figure.title}: ${said}` }, ...parts);
}
