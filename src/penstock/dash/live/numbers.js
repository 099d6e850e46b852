// Numbers, times and elements: how the page writes what it is told. Text becomes text nodes, never markup.
const NONE = "–";

/** Three digits, as "%.3g" writes them. */
function threeDigits(number) {
  if (number === 0) return "0";
  const power = Number(number.toExponential(2).split("e")[1]);
  if (power >= -4 && power < 3) return String(Number(number.toPrecision(3)));
  const [lead, tail] = number.toExponential(2).split("e");
  return `${String(Number(lead))}e${tail[0]}${tail.slice(1).padStart(2, "0")}`;
}

/** A number of at most four digits, as penstock's tables have it: 1.23 M. */
function human(number, unit = "") {
  if (number === null || number === undefined || !Number.isFinite(number)) return NONE;
  for (const [power, letter] of [[1e12, " T"], [1e9, " G"], [1e6, " M"], [1e3, " k"]]) {
    if (Math.abs(number) >= 0.9995 * power) return threeDigits(number / power) + letter + unit;
  }
  return threeDigits(number) + (unit ? " " : "") + unit;
}

const bytes = (number) => human(number, "B");
const fixed = (digits) => (number) => Number.isFinite(number) ? number.toFixed(digits) : NONE;
const whole = (number) => Number.isFinite(number) ? number.toLocaleString("en-US") : NONE;
const percent = (share) => Number.isFinite(share) ? `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %` : NONE;

/** Seconds as people say them. */
function duration(seconds) {
  if (!Number.isFinite(seconds)) return NONE;
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const parts = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = parts.findIndex(([, length]) => seconds >= length);
  let left = Math.round(seconds / parts[Math.min(first + 1, 3)][1]) * parts[Math.min(first + 1, 3)][1];
  const words = [];
  for (const [name, length] of parts.slice(first, first + 2)) {
    const count = Math.floor(left / length);
    left -= count * length;
    if (count) words.push(`${count} ${name}`);
  }
  return words.join(" ") || "0 s";
}

/** The same in little room: 57 s, 1:57 min, 2:03 h, 3 d 4 h. */
function shortDuration(seconds) {
  if (!(seconds >= 60 && seconds < 86400)) return duration(seconds);
  const [unit, part, name] = seconds < 3600 ? [60, 1, "min"] : [3600, 60, "h"];
  return `${Math.floor(seconds / unit)}:${String(Math.floor(seconds % unit / part)).padStart(2, "0")} ${name}`;
}

/** A text of so many characters at most, from both ends: names of hosts begin alike. */
function shortened(text, most) {
  if (text.length <= most) return text;
  const head = Math.floor((most - 1) / 2);
  return `${text.slice(0, head)}…${text.slice(text.length - (most - 1 - head))}`;
}

/** Seconds since 1970, or ISO 8601, as date and time in UTC. */
function clock(when) {
  if (when === null || when === undefined || when === "") return NONE;
  const date = new Date(typeof when === "number" ? 1000 * when : when);
  return Number.isNaN(date.getTime()) ? shortened(String(when), 24) : date.toISOString().slice(0, 19).replace("T", " ");
}

/** Seconds in a unit that suits a span of so many, and its name. */
function timeUnit(seconds) {
  if (seconds < 300) return [1, "seconds"];
  if (seconds < 5 * 3600) return [60, "minutes"];
  return seconds < 4 * 86400 ? [3600, "hours"] : [86400, "days"];
}

/** Text of a run without characters that move others about, such as those that turn the direction. */
const plain = (text) => typeof text === "string" ? text.replace(/[\p{Cc}\p{Cf}\p{Cs}]/gu, "\ufffd") : text;

function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : plain(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined).map(plain));
  return element;
}
const h = (tag, attributes, ...children) => build(document.createElement(tag), attributes, children);
const SVG = "http://www.w3.org/2000/svg";
const s = (tag, attributes, ...children) => build(document.createElementNS(SVG, tag), attributes, children);

/** A name from the run; the whole of a long one shows under the pointer. */
const named = (name) => h("span", { title: name.length > NAME_MOST ? name : null }, shortened(name, NAME_MOST));
const NAME_MOST = 36;

/**
 * Columns [{head, cell(row), text, explanation}] over rows, in a box that scrolls by itself. A cell is text or an
 * element; ``text`` columns ("short" or "long") are to the left, all others to the right.
 */
function table(label, columns, rows, rowClass = () => null) {
  const kind = (column) => column.text ? `text ${column.text}` : null;
  const head = columns.map((c) => h("th", { scope: "col", class: kind(c), title: c.explanation }, c.head));
  const body = rows.map((row) => h("tr", { class: rowClass(row) }, ...columns.map((column, index) => {
    const cell = column.cell(row);
    const shown = cell === null || cell === undefined ? NONE : cell;
    return index === 0 ? h("th", { scope: "row", class: kind(column) }, shown) : h("td", { class: kind(column) }, shown);
  })));
  return h("div", { class: "box", tabindex: 0, role: "region", "aria-label": label },
    h("table", null, h("thead", null, h("tr", null, ...head)), h("tbody", null, ...body)));
}

/** Replace what an element holds, but for a box that was scrolled: it stays where it was. */
function refill(element, ...children) {
  const before = [...element.querySelectorAll(".box")].map((box) => [box.scrollLeft, box.scrollTop]);
  const focused = [...element.querySelectorAll("[tabindex]")].indexOf(document.activeElement);
  element.replaceChildren(...children.filter((child) => child !== null && child !== undefined));
  [...element.querySelectorAll(".box")].forEach((box, index) => {
    if (before[index]) [box.scrollLeft, box.scrollTop] = before[index];
  });
  if (focused >= 0) [...element.querySelectorAll("[tabindex]")][focused]?.focus({ preventScroll: true });
}
