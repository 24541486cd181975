// Tables that scroll in their own container and can be sorted.

/**
 * columns: [{title, cell(row), text?, wrap?, value?(row), lower?, bold?, mark?(row)}]. A click on a column with
 * `value` sorts the rows, ascending first if less is better (`lower`). In a column with `bold`, the best row for
 * which `competes` is true is bold. `mark` underlines a cell; `aside` greys out a row.
 */
function table({ caption, columns, rows, competes = () => false, aside = () => false }) {
  const body = h("tbody");
  const heads = columns.map((column) => head(column));
  let sorted = null;

  function head(column) {
    const classes = column.text ? "text" : null;
    if (!column.value) return h("th", { scope: "col", class: classes }, column.title);
    const onclick = () => sort(column);
    return h("th", { scope: "col", class: classes, "aria-sort": "none" }, h("button", { type: "button", onclick }, column.title));
  }

  function sort(column) {
    const first = column.lower || column.text ? "ascending" : "descending";
    const other = first === "ascending" ? "descending" : "ascending";
    sorted = { column, order: sorted?.column === column && sorted.order === first ? other : first };
    draw();
  }

  function draw() {
    columns.forEach((column, at) => {
      if (column.value) heads[at].setAttribute("aria-sort", sorted?.column === column ? sorted.order : "none");
    });
    body.replaceChildren(...order().map((row) => line(row)));
  }

  function order() {
    if (!sorted) return rows;
    const sign = sorted.order === "ascending" ? 1 : -1;
    const missing = (value) => value === null || value === undefined;
    return [...rows].sort((one, two) => {
      const [a, b] = [sorted.column.value(one), sorted.column.value(two)];
      if (missing(a) || missing(b)) return missing(a) - missing(b);
      return sign * (typeof a === "string" ? a.localeCompare(b) : a - b);
    });
  }

  function line(row) {
    return h("tr", { class: aside(row) ? "aside" : null }, columns.map((column, at) => cell(column, row, at === 0)));
  }

  function cell(column, row, first) {
    const classes = [column.text && "text", column.wrap && "wrap", column.mark?.(row) && "worst"].filter(Boolean).join(" ");
    const content = [column.cell(row)].flat();
    if (isBest(column, row)) content[0] = h("b", {}, content[0]);
    return h(first ? "th" : "td", { class: classes || null, scope: first ? "row" : null }, content);
  }

  function isBest(column, row) {
    if (!column.bold || !competes(row) || !isNumber(column.value(row))) return false;
    const values = rows.filter(competes).map(column.value).filter(isNumber);
    return column.value(row) === (column.lower ? Math.min(...values) : Math.max(...values));
  }

  draw();
  const whole = h("table", { "aria-label": caption }, h("thead", {}, h("tr", {}, heads)), body);
  // Outside the container, so that the caption does not scroll.
  return h("div", {}, h("p", { class: "caption" }, caption), h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, whole));
}
