// The sections on the page that compares several runs.

function comparisonSections(comparison) {
  return [methodsSection(comparison), spreadSection(comparison), runsSection(comparison), comparisonLimits(comparison)];
}

function methodsSection({ models, baseline, runs, metrics }) {
  const interval = ({ difference }) => (difference ? `${signed(difference.low)} to ${signed(difference.high)}` : "–");
  const mean = (view, metric) => ({
    title: `${VIEWS[view]}\n${metrics[metric].title}`,
    cell: (row) => inFormat(row[view][metric], metrics[metric]),
    value: (row) => row[view][metric],
    lower: metrics[metric].better === "lower",
    bold: true,
  });
  const others = Object.keys(metrics).filter((metric) => metric !== "gap" && metrics[metric].headline && models.some((row) => isNumber(row.worst[metric])));
  return section(
    "models",
    "Models, paired by seed",
    note(`Difference: worst-task gap minus the worst-task gap of ${baseline} in the same run. Below 0 is better. The 95 % interval is Student's t over ${plural(runs.length, "run")}. If it contains 0, the runs do not show which model is better.`),
    table({
      caption: `Means over ${plural(runs.length, "run")}. Best generalist or merge in bold.`,
      columns: [
        { title: "model", text: true, cell: (row) => row.model, value: (row) => row.model },
        { title: "family", text: true, cell: (row) => row.family, value: (row) => row.family },
        mean("worst", "gap"),
        { title: `difference\nto ${baseline}`, cell: (row) => signed(row.difference?.mean), value: (row) => row.difference?.mean ?? null, lower: true },
        { title: "95 % interval", cell: interval },
        { title: "wins", cell: (row) => (row.difference ? `${row.wins}/${runs.length}` : "–"), value: (row) => (row.difference ? row.wins : null) },
        mean("average", "gap"),
        ...others.map((metric) => mean("worst", metric)),
      ],
      rows: models,
      competes: (row) => COMPARED_FAMILIES.includes(row.family),
      aside: (row) => !COMPARED_FAMILIES.includes(row.family),
    }),
  );
}

function spreadSection({ models, runs }) {
  return section(
    "spread",
    "Worst-task gap of each run",
    table({
      caption: "Each run",
      columns: [
        { title: "model", text: true, cell: (row) => row.model, value: (row) => row.model },
        ...runs.map((run, at) => ({ title: `seed ${run.seed}`, cell: (row) => number(row.each[at]), value: (row) => row.each[at], lower: true, bold: true })),
      ],
      rows: models,
      competes: (row) => COMPARED_FAMILIES.includes(row.family),
      aside: (row) => !COMPARED_FAMILIES.includes(row.family),
    }),
    h("p", { class: "quiet" }, h("span", { class: "key-mark" }), "the mean of the runs"),
    h("div", { class: "charts" }, spreadCharts(models, runs)),
  );
}

/** Bars of each run's worst-task gap; a line marks the mean of the runs. */
function spreadCharts(models, runs) {
  const shown = models.filter((row) => COMPARED_FAMILIES.includes(row.family));
  const high = Math.max(0, ...shown.flatMap((row) => row.each));
  const low = Math.min(0, ...shown.flatMap((row) => row.each));
  return shown.map((row) =>
    barChart({
      title: row.model,
      rows: runs.map((run, at) => ({ name: `seed ${run.seed}`, value: row.each[at], best: false })),
      low,
      high,
      mark: row.worst.gap,
    }));
}

function runsSection({ runs, config }) {
  return section(
    "runs",
    "Runs and configuration",
    table({
      caption: "The runs, whose configurations differ only in the seed",
      columns: [
        { title: "seed", cell: (run) => String(run.seed) },
        { title: "folder", text: true, cell: (run) => run.folder },
        { title: "library", text: true, cell: (run) => run.library ?? "–" },
      ],
      rows: runs,
    }),
    h("details", {}, h("summary", {}, `The configuration, with seed ${runs[0].seed}`), h("pre", { tabindex: "0" }, config)),
  );
}

function comparisonLimits({ limits }) {
  return section("limits", "What these runs do not show", h("ul", {}, limits.map((text) => h("li", {}, withCode(text)))));
}
