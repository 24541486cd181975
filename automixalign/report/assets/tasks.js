// Each model on each task with its interval, and its difference to the baseline.

function tasksSection(run) {
  const models = run.leaderboard.filter(isCompared);
  const metrics = Object.keys(run.metrics).filter((metric) => run.metrics[metric].better && models.some((entry) => metric in entry.worst));
  const container = h("div", {});
  const show = (metric) => container.replaceChildren(...valueCharts(run, models, metric), ...differenceCharts(run, models, metric));
  const first = metrics.includes(run.ranked_by) ? run.ranked_by : metrics[0];
  const select = choice("Metric", metrics.map((metric) => [metric, run.metrics[metric].title]), show);
  select.lastChild.value = first;
  show(first);
  return section("tasks", "Each task", h("div", { class: "controls" }, select), container, ...unrankedTables(run));
}

function valueCharts(run, models, metric) {
  const facts = run.metrics[metric];
  const tasks = tasksOf(run).filter((task) => models.some((entry) => metric in entry.tasks[task]));
  const specialists = tasks.map((task) => run.leaderboard.find((entry) => entry.model === `specialist-${task}`)?.tasks[task][metric] ?? null);
  const charts = tasks.map((task) => models.map((entry) => point(entry.model, entry.tasks[task][metric], entry.intervals?.[task]?.[metric])));
  const range = rangeOfPoints(charts.flat(), specialists);
  return [
    h("h3", {}, `The ${facts.title} on each task`),
    h("p", { class: "quiet" }, `${facts.better === "lower" ? "Less" : "More"} is better. Bars are 95 % intervals, from a bootstrap over test prompts.`, h("span", { class: "key-mark" }), "the task's specialist"),
    h("div", { class: "charts" }, tasks.map((task, at) => pointChart({ title: task, rows: charts[at], range, mark: specialists[at], show: (value) => inFormat(value, facts) }))),
  ];
}

function differenceCharts(run, models, metric) {
  const facts = run.metrics[metric], others = models.filter((entry) => entry.difference);
  const rows = (of) => others.filter((entry) => of(entry)).map((entry) => {
    const { mean, low, high } = of(entry);
    const below = high < -0.0005, above = low > 0.0005; // less looks like 0 in three digits
    const [better, worse] = facts.better === "lower" ? [below, above] : [above, below];
    return { ...point(entry.model, mean, [low, high]), tone: better ? "right" : worse ? "wrong" : "" };
  });
  const charts = [
    ["each model's worst task", rows((entry) => entry.worst_difference?.[metric])],
    ...tasksOf(run).map((task) => [task, rows((entry) => entry.difference[task]?.[metric])]),
  ].filter(([, points]) => points.length);
  if (!charts.length) return [];
  const range = rangeOfPoints(charts.flatMap(([, points]) => points), [0]);
  const show = (value) => (value > 0 ? "+" : "") + inFormat(value, facts);
  return [
    h("h3", {}, `Difference to ${run.baseline}`),
    note(`The ${facts.title} less that of ${run.baseline} on the same prompts, with its 95 % interval. A difference is resolved if its interval excludes 0: `, h("span", { class: "right" }, "better"), " or ", h("span", { class: "wrong" }, "worse"), ". Another seed may differ by more."),
    h("div", { class: "charts" }, charts.map(([title, points]) => pointChart({ title, rows: points, range, mark: 0, show }))),
  ];
}

/** A table for each metric that ranks no models, such as how far the chosen answers have drifted. */
function unrankedTables(run) {
  const names = Object.keys(run.metrics).filter((metric) => !run.metrics[metric].better);
  return names.flatMap((metric) => {
    const facts = run.metrics[metric];
    const value = (entry, task) => entry.tasks[task][metric] ?? null;
    const shown = run.leaderboard.filter((entry) => entry.family !== "reference" && tasksOf(run).some((task) => value(entry, task) !== null));
    if (!shown.length) return [];
    const limits = (entry, task) => entry.intervals?.[task]?.[metric];
    return [
      h("h3", {}, facts.title),
      note(facts.description),
      table({
        caption: `${facts.title} on the test split, with its 95 % interval`,
        columns: [
          { title: "model", text: true, cell: (entry) => entry.model, value: (entry) => entry.model },
          ...tasksOf(run).map((task) => ({
            title: task,
            value: (entry) => value(entry, task),
            cell: (entry) => [inFormat(value(entry, task), facts), limits(entry, task) ? h("small", {}, limits(entry, task).map((limit) => inFormat(limit, facts)).join(" to ")) : null],
          })),
        ],
        rows: shown,
        aside: (entry) => !isCompared(entry),
      }),
    ];
  });
}

const point = (name, value, interval) => ({ name, value: value ?? null, low: interval?.[0] ?? value ?? null, high: interval?.[1] ?? value ?? null, hasInterval: Boolean(interval) });

/** A range that holds all points, intervals and marks. */
function rangeOfPoints(rows, marks) {
  const values = [...rows.flatMap(({ low, high }) => [low, high]), ...marks].filter(isNumber);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const margin = (high - low || 1) * 0.03;
  return [low - margin, high + margin];
}

/** Points with interval bars. rows: [{name, value, low, high, tone?}]; `mark`: a line at the value to compare with. */
function pointChart({ title, rows, range: [low, high], mark, show }) {
  const position = (value) => `${(100 * (value - low)) / (high - low)}%`;
  const lines = rows.filter((row) => row.value !== null).map((row) => {
    const bar = h("div", { class: "interval" }), dot = h("div", { class: "dot" });
    bar.style.left = position(row.low);
    bar.style.width = `${(100 * (row.high - row.low)) / (high - low)}%`;
    dot.style.left = position(row.value);
    const line = isNumber(mark) ? h("div", { class: "mark" }) : null;
    if (line) line.style.left = position(mark);
    return h(
      "div",
      { class: `point-row ${row.tone ?? ""}` },
      h("span", { class: "name", title: row.name }, row.name),
      h("div", { class: "track", "aria-hidden": "true" }, line, bar, dot),
      h("span", { class: "value" }, show(row.value), row.hasInterval ? h("small", {}, `${show(row.low)} to ${show(row.high)}`) : null),
    );
  });
  return h("figure", {}, h("figcaption", {}, title), lines);
}
