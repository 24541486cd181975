// Line charts over steps with a readout, and bar charts. Both adapt to the width of the page.

const DASHES = [null, "6 3", "2 3"];
const COLORS = 8;
const colorOf = (index) => `var(--c${index % COLORS})`;
const dashOf = (index) => DASHES[Math.floor(index / COLORS) % DASHES.length];

/** Round numbers that divide [low, high] into at most five parts. */
function ticks(low, high) {
  const rough = (high - low) / 4 || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const values = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at++) values.push(Number((at * step).toPrecision(6)));
  return values;
}

/**
 * Curves over `steps`. series: [{name, index, values}]; `range`: [low, high]; `mark`: a step to mark; `peers`: charts
 * that show the same step. The pointer or the arrow keys select the step.
 */
function lineChart({ title, steps, series, range, mark = null, peers = [] }) {
  const HEIGHT = 210, LEFT = 44, RIGHT = 18, TOP = 8, BOTTOM = 24;
  const readout = h("p", { class: "readout" });
  const svg = s("svg", { height: HEIGHT, tabindex: "0", role: "img", "aria-label": `${title}; arrow keys read single steps` });
  const cursor = s("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  const [low, high] = range, last = steps.length - 1;
  let width = 0, at = last;

  const x = (step) => LEFT + ((step - steps[0]) / (steps[last] - steps[0] || 1)) * (width - LEFT - RIGHT);
  const y = (value) => TOP + (1 - (value - low) / (high - low || 1)) * (HEIGHT - TOP - BOTTOM);

  function path(values) {
    let pen = "M", text = "";
    values.forEach((value, index) => {
      if (value === null) return;
      text += `${pen}${x(steps[index]).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = "L";
    });
    return text;
  }

  function draw(newWidth) {
    width = newWidth;
    const lines = ticks(low, high).map((value) => [
      s("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }),
      s("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, String(value)),
    ]);
    const marks = ticks(steps[0], steps[last]).map((step) => s("text", { x: x(step), y: HEIGHT - 7, "text-anchor": "middle" }, String(step)));
    marks.push(s("text", { x: 0, y: HEIGHT - 7 }, "step"));
    const curves = series.map(({ index, values }) => {
      const curve = s("path", { class: "curve", d: path(values), "stroke-dasharray": dashOf(index) });
      curve.style.stroke = colorOf(index);
      return curve;
    });
    svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const marked = mark === null ? [] : [s("line", { class: "kept", x1: x(mark), x2: x(mark), y1: TOP, y2: HEIGHT - BOTTOM })];
    svg.replaceChildren(...lines.flat(), ...marks, ...marked, ...curves, cursor);
    show(at, cursor.getAttribute("visibility") === "visible");
  }

  function show(index, visible) {
    at = Math.max(0, Math.min(last, index));
    cursor.setAttribute("visibility", visible ? "visible" : "hidden");
    cursor.setAttribute("x1", x(steps[at]));
    cursor.setAttribute("x2", x(steps[at]));
    const values = series.map(({ name, index: color, values: all }) => {
      const text = h("span", {}, `${name} ${number(all[at])}`);
      text.style.color = colorOf(color);
      return text;
    });
    readout.replaceChildren(h("span", {}, `step ${steps[at]}`), ...values);
  }

  const chart = { show };
  const showAll = (index, visible) => peers.forEach((peer) => peer.show(index, visible));
  peers.push(chart);
  svg.addEventListener("pointermove", (event) => {
    const pointed = ((event.clientX - svg.getBoundingClientRect().left - LEFT) / (width - LEFT - RIGHT)) * (steps[last] - steps[0]);
    let nearest = 0;
    steps.forEach((step, index) => {
      if (Math.abs(step - steps[0] - pointed) < Math.abs(steps[nearest] - steps[0] - pointed)) nearest = index;
    });
    showAll(nearest, true);
  });
  svg.addEventListener("pointerleave", () => showAll(last, false));
  svg.addEventListener("blur", () => showAll(last, false));
  svg.addEventListener("focus", () => readout.setAttribute("aria-live", "polite"));
  svg.addEventListener("keydown", (event) => {
    const target = { ArrowLeft: at - 1, ArrowRight: at + 1, PageUp: at - 10, PageDown: at + 10, Home: 0, End: last }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    showAll(target, true);
  });
  show(last, false);
  new ResizeObserver(([entry]) => {
    const newWidth = Math.round(entry.contentRect.width);
    if (newWidth > 0 && newWidth !== width) draw(newWidth);
  }).observe(svg);
  return h("figure", {}, h("figcaption", {}, title), svg, readout);
}

/** Horizontal bars from 0, on a scale from `low` (at most 0) to `high`. rows: [{name, value, best}]; `mark`: a line at the value to compare with. */
function barChart({ title, rows, low = 0, high, mark = null, digits = 3 }) {
  const position = (value) => `${(100 * (value - low)) / (high - low || 1)}%`;
  const lines = rows.map(({ name, value, best }) => {
    const bar = h("div", { class: "fill" });
    bar.style.left = position(Math.min(0, value));
    bar.style.width = position(low + Math.abs(value));
    const line = mark === null ? null : h("div", { class: "mark" });
    if (line) line.style.left = position(mark);
    return h(
      "div",
      { class: best ? "bar-row best" : "bar-row" },
      h("span", { class: "name", title: name }, name),
      h("div", { class: "track", "aria-hidden": "true" }, bar, line),
      h("span", { class: "value" }, number(value, digits)),
    );
  });
  return h("figure", {}, h("figcaption", {}, title), lines);
}
