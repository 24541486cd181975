// Charts of the trainings: of one model or of all, with buttons that show and hide tasks.

/** The range of a metric over several trainings, so that their charts have the same scale. */
function rangeOf(trainings, metric) {
  const values = trainings.flatMap((training) => Object.values(training[metric] ?? {}).flat()).filter(isNumber);
  return [Math.min(0, ...values), Math.max(...values, Math.min(...values) + 1e-6)];
}

/** metrics: [[key, title]]; `models`: names in `trainings`; `chosen`: the model that is shown first. */
function trainingCharts({ label, tasks, trainings, models, metrics, chosen }) {
  const charts = h("div", {});
  const hidden = new Set();
  const ALL = "";
  const ranges = Object.fromEntries(metrics.map(([key]) => [key, rangeOf(models.map((name) => trainings[name]), key)]));
  let shown = chosen;

  function draw() {
    const names = shown === ALL ? models : [shown];
    charts.replaceChildren(...names.map((name) => row(name, names.length > 1)));
  }

  function row(name, titled) {
    const training = trainings[name], peers = [];
    const figures = metrics
      .filter(([key]) => training[key])
      .map(([key, title]) => lineChart({
        title: titled ? `${name}: ${title}` : title,
        steps: training.steps,
        series: tasks.flatMap((task, index) =>
          training[key][task] && !hidden.has(task) ? [{ name: task, index, values: training[key][task] }] : []),
        range: ranges[key],
        mark: training.kept_step ?? null,
        peers,
      }));
    return h("div", { class: "charts" }, figures);
  }

  const toggles = tasks.map((task, index) => {
    const swatch = h("span", { class: "swatch" });
    swatch.style.borderTopColor = colorOf(index);
    swatch.style.borderTopStyle = dashOf(index) ? "dashed" : "solid";
    const toggle = h("button", { type: "button", class: "toggle", "aria-pressed": "true", onclick }, swatch, task);
    function onclick() {
      if (!hidden.delete(task)) hidden.add(task);
      toggle.setAttribute("aria-pressed", String(!hidden.has(task)));
      draw();
    }
    return toggle;
  });
  const options = [...models.map((name) => [name, name]), [ALL, "all models"]];
  const select = choice(label, options, (value) => { shown = value; draw(); });
  select.lastChild.value = chosen;
  draw();
  const group = h("div", { class: "toggles", role: "group", "aria-label": "Tasks shown" }, toggles);
  return [h("div", { class: "controls" }, select, group), charts];
}
