// Elements of the page. All text becomes text nodes, never HTML.

const SVG = "http://www.w3.org/2000/svg";

/** Add attributes and children to an element. `onclick` and similar names add listeners; null children are skipped. */
function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

const isNumber = (value) => typeof value === "number";
const number = (value, digits = 3) => (isNumber(value) ? value.toFixed(digits) : "–");
const signed = (value, digits = 3) => {
  if (!isNumber(value)) return "–";
  const text = Math.abs(value).toFixed(digits);
  return Number(text) === 0 ? text : (value > 0 ? "+" : "-") + text;
};
const count = (value) => (isNumber(value) ? value.toLocaleString("en-US") : "–");
const percent = (value, digits = 1) => (isNumber(value) ? `${(100 * value).toFixed(digits)} %` : "–");
const plural = (many, noun) => `${count(many)} ${noun}${many === 1 ? "" : "s"}`;

const VIEWS = { worst: "worst", average: "mean" };

/** A metric's value in its format, such as `.3f` or `.1%`. */
const inFormat = (value, { format }) => (format.endsWith("%") ? percent : number)(value, Number(format[1]));

/** A section of the page; the navigation links to it. */
function section(id, title, ...children) {
  return h("section", { id, "aria-labelledby": `${id}-title` }, h("h2", { id: `${id}-title` }, title), ...children);
}

/** The text, with code elements for the parts between backticks. */
const withCode = (text) => text.split("`").map((part, at) => (at % 2 ? h("code", {}, part) : part));

const note = (...text) => h("p", { class: "quiet" }, ...text);

/** A labelled drop-down list. */
function choice(label, options, onchange) {
  const select = h("select", { onchange: () => onchange(select.value) });
  for (const [value, text] of options) select.append(h("option", { value }, text));
  return h("label", {}, label, select);
}
