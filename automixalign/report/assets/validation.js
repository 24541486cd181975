// What the validations during the trainings measured, and which step each model is of.

const VALIDATION_CURVES = [["gap", "gap on validation pairs"], ["loss", "loss on validation pairs"]];

function validationSection(run) {
  const validations = run.validations ?? {}, models = Object.keys(validations);
  if (!models.length) return null;
  const generalists = models.filter((name) => validations[name].gap);
  const rows = models.map((model) => ({ model, ...validations[model] }));
  const worst = (row, value) => [number(value), h("small", {}, row.gap ? "worst gap" : "loss")];
  return section(
    "validation",
    "Validation during training",
    note("Each validation scores the same sample of every task's validation pairs. Gap: mean of (loss − specialist's loss). A specialist has no gap, so its loss takes that place. A vertical line marks the step whose policy is the model. The test split has no part in this."),
    h("div", { class: "charts" }, worstGapChart(validations, generalists)),
    ...trainingCharts({ label: "Model", tasks: tasksOf(run), trainings: validations, models, metrics: VALIDATION_CURVES, chosen: generalists[0] ?? models[0] }),
    table({
      caption: "The step of each model, and its worst gap (of a specialist: its loss) at that step and at the last step",
      columns: [
        { title: "model", text: true, cell: (row) => row.model },
        { title: "step", cell: (row) => count(row.kept_step) },
        { title: "at this step", cell: (row) => worst(row, row.kept_worst) },
        { title: "at the last step", cell: (row) => worst(row, row.last_worst) },
      ],
      rows,
    }),
  );
}

/** The worst gap of all generalists in one chart. */
function worstGapChart(validations, models) {
  if (!models.length) return null;
  const steps = [...new Set(models.flatMap((name) => validations[name].steps))].sort((a, b) => a - b);
  const series = models.map((name, index) => {
    const { steps: own, worst } = validations[name];
    return { name, index, values: steps.map((step) => worst[own.indexOf(step)] ?? null) };
  });
  const all = series.flatMap(({ values }) => values).filter(isNumber);
  const range = [Math.min(0, ...all), Math.max(...all, Math.min(...all) + 1e-6)];
  return lineChart({ title: "worst gap of each method", steps, series, range });
}
