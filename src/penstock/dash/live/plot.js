// One figure: title, legend, an SVG drawn at the width that there is, its numbers as a table, and buttons that save it.
const DASHES = [null, "7 3", "2 3", "9 3 2 3", "14 4", "5 2 1 2 1 2"];
const COLOURS = 6;
const TABLE_ROWS = 40;
const figures = new Set();

/** Round values within an interval, about so many: 1, 2 or 5 times a power of ten. */
function ticksOf(low, high, most) {
  const least = (high - low) / most, power = 10 ** Math.floor(Math.log10(least));
  const step = [1, 2, 5, 10].map((lead) => lead * power).find((each) => each >= least * (1 - 1e-9));
  const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
  return Array.from({ length: Math.max(0, last - first + 1) }, (_, index) => (first + index) * step);
}

/** The ticks in words, alike in digits; large ones with a letter. */
function written(ticks, unit = "") {
  if (Math.max(...ticks.map(Math.abs), 0) >= 1000 || unit) return ticks.map((tick) => tick === 0 ? "0" : human(tick, unit));
  const digits = [0, 1, 2, 3, 4, 5, 6].find((n) => ticks.every((t) => Math.abs(Number(t.toFixed(n)) - t) < 1e-9));
  return ticks.map((tick) => tick.toFixed(digits ?? 6));
}

/** An interval of values over an interval of the plot. */
const axis = (low, high, start, end) => {
  const at = (value) => start + (value - low) / (high - low) * (end - start);
  return Object.assign(at, { low, high, start, end });
};

function legendKey(style) {
  const dashes = DASHES[(style + Math.floor(style / COLOURS)) % COLOURS];
  return s("svg", { viewBox: "0 0 30 14", class: "key", "aria-hidden": "true" },
    s("path", { d: "M1 7H29", class: `line c${style % COLOURS}`, "stroke-dasharray": dashes }));
}

const swatch = (style, pale) => s("svg", { viewBox: "0 0 14 14", class: "swatch", "aria-hidden": "true" },
  s("rect", { x: 1, y: 1, width: 12, height: 12, class: `bar c${style % COLOURS}${pale ? " pale" : ""}` }));

class Figure {
  /** ``draw(figure, width)`` makes an SVG and returns it; ``numbers()`` is {columns, rows}. */
  constructor(title, { note = "", draw, numbers, wide = false }) {
    this.title = title;
    this.drawing = draw;
    this.numbers = numbers;
    this.legend = h("ul", { class: "legend" });
    this.host = h("div", { class: "plot" });
    this.table = h("div");
    this.details = h("details", null, h("summary", null, "The numbers"), this.table);
    this.details.addEventListener("toggle", () => this.fillTable());
    const save = (kind, word) => {
      const button = h("button", { type: "button", "aria-label": `Save ${title} as ${word}` }, word);
      button.addEventListener("click", () => savePicture(this, kind));
      return button;
    };
    this.element = h("figure", { class: wide ? "wide" : null },
      h("div", { class: "head" }, h("h3", null, title), h("span", { class: "tools" }, "Save ", save("svg", "SVG"), save("png", "PNG"))),
      note ? h("p", { class: "note" }, note) : null, this.legend, this.host, numbers ? this.details : null);
    figures.add(this);
    this.number = figures.size;
  }

  /** Draw anew, with what there is now. */
  draw() {
    const width = Math.floor(this.host.clientWidth);
    if (width < 50) return;
    const focused = this.host.contains(document.activeElement);
    this.host.replaceChildren(this.drawing(this, width));
    if (focused) this.host.firstElementChild.focus({ preventScroll: true });
    this.fillTable();
  }

  setLegend(items) {
    this.legend.replaceChildren(...items.map(([key, text]) => h("li", null, key, named(text))));
    this.legend.hidden = !items.length;
  }

  fillTable() {
    if (!this.details.open) return;
    const { columns, rows } = this.numbers();
    refill(this.table, table(`Numbers: ${this.title}`, columns, thinned(rows, TABLE_ROWS)));
  }
}

/** At most so many of the rows, evenly, the first and the last among them. */
function thinned(rows, most) {
  if (rows.length <= most) return rows;
  return Array.from({ length: most }, (_, index) => rows[Math.round(index * (rows.length - 1) / (most - 1))]);
}

window.addEventListener("resize", () => {
  for (const figure of figures) if (figure.width !== figure.host.clientWidth) figure.draw();
});

/**
 * Curves over one another.
 * spec: {xs, lines: [{label, style, ys}], x: {high, unit, label}, y: {low, high, unit}, at, marks: [{x, text, bad}], tip(index)}
 */
function linePlot(figure, width, spec) {
  const height = 200, left = 58, right = width - 14, top = 12, bottom = height - 38;
  const x = axis(spec.x.low ?? 0, spec.x.high, left, right), y = axis(spec.y.low, spec.y.high, bottom, top);
  const yTicks = ticksOf(y.low, y.high, 5), xTicks = ticksOf(x.low, x.high, Math.max(2, Math.floor((right - left) / 75)));
  const parts = [];
  written(yTicks, spec.y.unit).forEach((text, n) => parts.push(
    s("path", { d: `M${left} ${y(yTicks[n]).toFixed(1)}H${right}`, class: "grid" }),
    s("text", { x: left - 6, y: (y(yTicks[n]) + 4).toFixed(1), "text-anchor": "end", class: "tick" }, text)));
  written(xTicks).forEach((text, n) => parts.push(
    s("path", { d: `M${x(xTicks[n]).toFixed(1)} ${bottom}v4`, class: "axis" }),
    s("text", { x: x(xTicks[n]).toFixed(1), y: bottom + 17, "text-anchor": "middle", class: "tick" }, text)));
  parts.push(s("path", { d: `M${left} ${bottom}H${right}`, class: "axis" }),
    s("text", { x: (left + right) / 2, y: bottom + 33, "text-anchor": "middle", class: "label" }, spec.x.label));
  if (spec.at !== undefined && spec.at > y.low && spec.at < y.high) {
    parts.push(s("path", { d: `M${left} ${y(spec.at).toFixed(1)}H${right}`, class: "axis", "stroke-dasharray": "4 3" }));
  }
  for (const mark of spec.marks || []) {
    if (mark.x >= x.low && mark.x <= x.high) {
      parts.push(s("path", { d: `M${x(mark.x).toFixed(1)} ${bottom}V${top}`, class: mark.bad ? "event bad" : "event" }));
    }
  }
  const frame = `frame-${figure.number}`;
  parts.push(s("clipPath", { id: frame }, s("rect", { x: left, y: top - 4, width: Math.max(1, right - left + 8), height: bottom - top + 4 })));
  const inside = (value) => Math.min(bottom + 20, Math.max(top - 20, y(value)));
  for (const line of spec.lines) {
    let path = "", pen = "M";
    line.ys.forEach((value, index) => {
      if (value === null || !Number.isFinite(value)) { pen = "M"; return; }
      path += `${pen}${x(spec.xs[index]).toFixed(1)} ${inside(value).toFixed(1)}`;
      pen = "L";
    });
    const dashes = DASHES[(line.style + Math.floor(line.style / COLOURS)) % COLOURS];
    parts.push(s("path", { d: path || "M0 0", class: `line c${line.style % COLOURS}${line.thin ? " thin" : ""}`, "stroke-dasharray": dashes, "clip-path": `url(#${frame})` }));
    const last = line.ys.findLastIndex((value) => value !== null && Number.isFinite(value));
    if (last >= 0 && line.ys[last] >= y.low && line.ys[last] <= y.high) {
      parts.push(s("circle", { cx: x(spec.xs[last]).toFixed(1), cy: y(line.ys[last]).toFixed(1), r: 3.5, class: `mark c${line.style % COLOURS}` }));
    }
  }
  const cursor = s("path", { class: "axis through", d: "" });
  const area = s("rect", { x: left, y: top, width: Math.max(1, right - left), height: bottom - top, class: "hit" });
  const said = `${figure.title}. ${spec.xs.length ? spec.tip(spec.xs.length - 1) : "Nothing yet"}`;
  const drawn = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0, "aria-label": said }, ...parts, cursor, area);
  figure.width = width;
  pointAt(figure, drawn, area, cursor, spec, x, `${bottom}V${top}`);
  return drawn;
}

/** Words of the nearest point: under the pointer, or by the arrow keys where the plot has the focus. */
function pointAt(figure, drawn, area, cursor, spec, x, upright) {
  const mark = (index) => {
    figure.index = index;
    cursor.setAttribute("d", `M${x(spec.xs[index]).toFixed(1)} ${upright}`);
    area.setAttribute("data-tip", spec.tip(index));
  };
  if (!spec.xs.length) return;
  area.addEventListener("pointermove", (event) => {
    const box = drawn.getBoundingClientRect();
    const value = x.low + (event.clientX - box.left - x.start) / (x.end - x.start) * (x.high - x.low);
    let low = 0, high = spec.xs.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (spec.xs[middle] < value) low = middle + 1; else high = middle;
    }
    mark(low > 0 && value - spec.xs[low - 1] < spec.xs[low] - value ? low - 1 : low);
  });
  area.addEventListener("pointerleave", () => cursor.setAttribute("d", ""));
  drawn.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const from = figure.index ?? spec.xs.length - 1, last = spec.xs.length - 1;
    mark(Math.max(0, Math.min(last, from + step)));
    const box = drawn.getBoundingClientRect();
    showTip(spec.tip(figure.index), box.left + x(spec.xs[figure.index]), box.top + 20);
  });
  drawn.addEventListener("blur", () => { tip.hidden = true; });
}

/** The interval that shows what has settled: scores of few rows jump, and would flatten the rest. */
function settledRange(xs, lines, least) {
  const from = xs.length ? xs[0] + 0.1 * (xs[xs.length - 1] - xs[0]) : 0;
  const values = lines.flatMap((line) => line.ys.filter((value, n) => value !== null && Number.isFinite(value) && xs[n] >= from));
  if (!values.length) return { low: 0, high: 1 };
  const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
  const air = Math.max(0.06 * (high - low), (least * Math.abs(high) - (high - low)) / 2, 1e-6);
  return { low: low - air, high: high + air };
}

function zeroRange(lines) {
  const high = lines.flatMap((line) => line.ys).reduce((a, b) => b !== null && b > a ? b : a, 0);
  return { low: 0, high: high > 0 ? 1.08 * high : 1 };
}

const KEPT = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin", "opacity", "font-family", "font-size", "font-weight", "clip-path"];

/** A copy that needs no style sheet. */
function inlined(shown) {
  const copy = shown.cloneNode(true);
  const originals = [shown, ...shown.querySelectorAll("*")], copies = [copy, ...copy.querySelectorAll("*")];
  originals.forEach((original, index) => {
    const style = getComputedStyle(original), target = copies[index];
    for (const name of KEPT) {
      const value = style.getPropertyValue(name);
      if (value && value !== "none" || name === "fill") target.setAttribute(name, value);
    }
    for (const name of ["class", "data-tip", "tabindex"]) target.removeAttribute(name);
  });
  return copy;
}

/** A figure as one SVG by itself: title, legend and drawing, colours and fonts as on the page, on the page's ground. */
function standalone(figure) {
  const shown = figure.host.querySelector("svg"), page = getComputedStyle(document.body);
  const [width, drawn] = shown.getAttribute("viewBox").split(" ").slice(2).map(Number);
  const text = { fill: page.color, "font-family": page.fontFamily };
  const parts = [s("text", { x: 8, y: 22, "font-size": 15, "font-weight": 600, ...text }, figure.title)];
  let x = 8, y = 42;
  for (const item of figure.legend.hidden ? [] : figure.legend.children) {
    const key = item.querySelector("svg"), words = item.textContent, keyWidth = key ? key.viewBox.baseVal.width : 0;
    const needed = keyWidth + 6 + 7.5 * words.length + 16;
    if (x > 8 && x + needed > width) [x, y] = [8, y + 20];
    if (key) {
      const copy = inlined(key);
      for (const [name, value] of Object.entries({ x, y: y - 11, width: keyWidth, height: 14 })) copy.setAttribute(name, value);
      parts.push(copy);
    }
    parts.push(s("text", { x: x + keyWidth + 6, y, "font-size": 12.5, ...text }, words));
    x += needed;
  }
  const top = x > 8 ? y + 10 : 30, height = top + drawn, copy = inlined(shown);
  for (const [name, value] of Object.entries({ x: 0, y: top, width, height: drawn })) copy.setAttribute(name, value);
  const whole_ = s("svg", { width, height, viewBox: `0 0 ${width} ${height}` },
    s("title", null, figure.title), s("rect", { width, height, fill: page.backgroundColor }), ...parts, copy);
  return { text: new XMLSerializer().serializeToString(whole_), width, height };
}

async function savePicture(figure, kind) {
  const { text, width, height } = standalone(figure);
  const name = `${figure.title.toLowerCase().replace(/[^a-z0-9]+/g, "-")}.${kind}`;
  if (kind === "svg") { download(new Blob([text], { type: "image/svg+xml" }), name); return; }
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  await image.decode();
  const canvas = h("canvas", { width: 2 * width, height: 2 * height });
  canvas.getContext("2d").drawImage(image, 0, 0, 2 * width, 2 * height);
  canvas.toBlob((blob) => download(blob, name), "image/png");
}

function download(blob, name) {
  const url = URL.createObjectURL(blob), link = h("a", { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
