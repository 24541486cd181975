// The sections on the page of one run.

const COMPARED_FAMILIES = ["generalist", "merge"];
const METHOD_CURVES = [["weights", "task weight"], ["excess", "training excess"]];
const TRAINING_CURVES = [["loss", "loss"], ["accuracy", "reward accuracy"], ["margin", "reward margin"], ["clipped", "share of clipped pairs"]];
const DROPS = {
  identical_sides: "identical answers", duplicate: "duplicate", contradictory: "contradictory", over_limit: "over the limit",
  prompt_too_long: "prompt too long", identical_when_cut: "identical after cutting", over_cap: "over the cap of the split",
  filtered: "left out by 'where'", contaminated: "in a test set of others", long_answer: "answer too long",
};

function runSections(run) {
  return [
    leaderboardSection(run),
    gridsSection(run),
    benchmarksSection(run),
    tasksSection(run),
    examplesSection(run),
    trajectoriesSection(run),
    curvesSection(run),
    validationSection(run),
    dataSection(run),
    tuningsSection(run),
    costSection(run),
    configurationSection(run),
    limitsSection(run),
  ];
}

const tasksOf = (run) => run.tasks.map((task) => task.name);
const isCompared = (entry) => COMPARED_FAMILIES.includes(entry.family);
const isLower = (run, metric) => run.metrics[metric].better === "lower";

/** The worst task of a model by a metric. */
function worstTask(run, entry, metric) {
  const tasks = Object.keys(entry.tasks).filter((task) => metric in entry.tasks[task]);
  const worse = (a, b) => (isLower(run, metric) ? a > b : a < b);
  return tasks.reduce((worst, task) => (worst === null || worse(entry.tasks[task][metric], entry.tasks[worst][metric]) ? task : worst), null);
}

function leaderboardSection(run) {
  const metrics = Object.keys(run.metrics).filter((metric) => run.leaderboard.some((entry) => metric in entry.worst));
  const container = h("div", {});
  const OVERVIEW = "";
  const fixed = [
    { title: "model", text: true, cell: (entry) => [entry.model, cardLink(run, entry.model)], value: (entry) => entry.model },
    { title: "family", text: true, cell: (entry) => entry.family, value: (entry) => entry.family },
  ];

  function show(metric) {
    const shown = metric === OVERVIEW ? metrics.flatMap(overTasks) : eachTask(metric);
    const what = metric === OVERVIEW ? "every metric on the worst task (named below the value) and its mean over tasks" : `${run.metrics[metric].title} on every task; each model's worst task is underlined`;
    container.replaceChildren(table({
      caption: `Held-out test split: ${what}. Best generalist or merge in bold.`,
      columns: [...fixed, ...shown],
      rows: run.leaderboard,
      competes: isCompared,
      aside: (entry) => !isCompared(entry),
    }));
  }

  function overTasks(metric) {
    return ["worst", "average"].map((view) => ({
      title: `${VIEWS[view]}\n${run.metrics[metric].title}`,
      value: (entry) => entry[view][metric] ?? null,
      cell: (entry) => [inFormat(entry[view][metric], run.metrics[metric]), view === "worst" && metric in entry.worst ? h("small", {}, worstTask(run, entry, metric)) : null],
      lower: isLower(run, metric),
      bold: true,
    }));
  }

  function eachTask(metric) {
    return tasksOf(run).map((task) => ({
      title: task,
      value: (entry) => entry.tasks[task][metric] ?? null,
      cell: (entry) => {
        const worst = worstTask(run, entry, metric) === task;
        return [inFormat(entry.tasks[task][metric], run.metrics[metric]), worst ? h("span", { class: "hidden" }, " worst task") : null];
      },
      mark: (entry) => worstTask(run, entry, metric) === task,
      lower: isLower(run, metric),
      bold: true,
    }));
  }

  show(OVERVIEW);
  return section(
    "leaderboard",
    "Leaderboard",
    note(`The model is chosen on the validation split. This table shows the test split. The ${run.metrics[run.ranked_by].title} on the worst task ranks the models.`),
    h("details", {}, h("summary", {}, "What the metrics are"), metricList(run)),
    h("div", { class: "controls" }, choice("Show", [[OVERVIEW, "worst task and mean, every metric"], ...metrics.map((metric) => [metric, `${run.metrics[metric].title} on each task`])], show)),
    container,
  );
}

/** The metrics as their functions describe them. */
function metricList(run) {
  const direction = { lower: "less is better", higher: "more is better" };
  const items = Object.values(run.metrics).map(({ title, better, description }) =>
    h("li", {}, h("b", {}, title), `: ${description}`, better ? ` (${direction[better]})` : ""));
  return h("div", {}, note("Mean over a task's test pairs, or over its prompts for answers. L is the loss of a pair z, theta the model, theta_i the task's specialist."), h("ul", {}, items));
}

function trajectoriesSection(run) {
  const models = run.leaderboard.filter((entry) => entry.family === "generalist").map((entry) => entry.model);
  const moving = models.find((name) => Object.values(run.trainings[name].weights).some((curve) => new Set(curve).size > 1));
  return section(
    "trajectories",
    "Task weights and excess during training",
    note(`Task weights of each step, and the excess on the training pairs as a running mean over ${run.trainings[models[0]].window} steps. Point at a chart, or use the arrow keys, to read the values of a step.`),
    ...trainingCharts({ label: "Method", tasks: tasksOf(run), trainings: run.trainings, models, metrics: METHOD_CURVES, chosen: moving ?? models[0] }),
  );
}

function curvesSection(run) {
  const models = Object.keys(run.trainings);
  const generalists = run.leaderboard.filter((entry) => entry.family === "generalist").map((entry) => entry.model);
  const windows = [...new Set(Object.values(run.trainings).map((training) => training.window))].sort((a, b) => a - b);
  return section(
    "curves",
    "Training curves",
    note(`Running means over ${windows.join(" or ")} steps, on the training pairs. All models have the same scale. A pair is clipped if its loss is at or below the specialist's.`),
    ...trainingCharts({ label: "Model", tasks: tasksOf(run), trainings: run.trainings, models, metrics: TRAINING_CURVES, chosen: generalists[0] }),
  );
}

function dataSection(run) {
  const name = { title: "task", text: true, cell: (task) => task.name };
  const pairs = (split) => ({ title: split, cell: (task) => count(task.pairs[split]) });
  const tokens = (side) => ({ title: `${side},\nmean tokens`, cell: (task) => number(task.tokens[side].mean, 1) });
  const drops = (source) => Object.entries(source.rows).filter(([reason, many]) => many && reason !== "read");
  const dropText = (source) => drops(source).map(([reason, many]) => `${count(many)} ${DROPS[reason] ?? reason.replaceAll("_", " ")}`).join(", ") || "none";
  const sources = run.tasks.flatMap((task) => task.sources.map((source) => ({ name: task.name, ...source })));
  const loss = (split) => ({ title: `loss,\n${split}`, cell: (task) => number(task.specialist.mean_loss[split]) });
  const clipping = [...new Set(run.tasks.flatMap((task) => Object.keys(task.clipped)))];
  return section(
    "data",
    "Data",
    ...run.warnings.map((text) => h("p", { class: "warning" }, `Warning: ${text}`)),
    table({
      caption: "What each source gave: rows, pairs of each split, and what is left out",
      columns: [
        name,
        { title: "source", text: true, cell: (source) => source.path },
        { title: "rows read", cell: (source) => count(source.rows.read) },
        ...["train", "validation", "test"].map(pairs),
        { title: "left out", text: true, wrap: true, cell: dropText },
      ],
      rows: sources,
    }),
    table({
      caption: `Pairs of each task, their tokens, and answers that end after max_length (${run.long_answers === "cut" ? "cut" : "left out"})`,
      columns: [
        name,
        ...["train", "validation", "test"].map(pairs),
        ...["prompt", "chosen", "rejected"].map(tokens),
        { title: "long\nchosen", cell: (task) => count(task.long_answers.chosen) },
        { title: "long\nrejected", cell: (task) => count(task.long_answers.rejected) },
      ],
      rows: run.tasks,
    }),
    h("h3", {}, "Estimated noise of the training labels"),
    note("Two rough estimates. Contradicted: share of the training pairs whose rejected answer the task's specialist prefers. It is too low if the specialist has memorised its pairs (see memorisation below). Clipped: share of the pairs in the last quarter of a training whose loss was at or below the specialist's. A method with the clipped excess does not train on these pairs. This share contains the noise and also every clean pair that the model has learnt, so it is usually far too high. Swapped on purpose: the exact share, from label_noise."),
    table({
      caption: "Estimated share of noisy training pairs",
      columns: [
        name,
        { title: "contradicted", cell: (task) => percent(task.contradicted) },
        ...clipping.map((method) => ({ title: `clipped,\n${method}`, cell: (task) => percent(task.clipped[method]) })),
        { title: "swapped\non purpose", cell: (task) => percent(task.swapped / task.pairs.train) },
      ],
      rows: run.tasks,
    }),
    h("h3", {}, "How far the specialists have memorised their training pairs"),
    note("Memorisation: mean loss on the held-out pairs minus mean loss on the training pairs, with its 95 % interval over prompts. A large value means that the specialist has memorised its training pairs, if the interval excludes 0 and the training saw each pair at least twice (passes). Its losses on them are then too low for a comparison. Cross-fitting avoids this: a specialist trained on one half of the pairs scores the other half. Swapped training pairs make the value smaller."),
    table({
      caption: "Each specialist on its own task",
      columns: [
        name,
        ...["train", "validation", "test"].map(loss),
        { title: "memorisation", cell: (task) => signed(task.specialist.gap) },
        { title: "95 % interval", cell: ({ specialist }) => (specialist.gap_interval ? specialist.gap_interval.map((limit) => signed(limit)).join(" to ") : "–") },
        { title: "passes", cell: (task) => number(task.specialist.passes, 1) },
        { title: "cross-fitted", text: true, cell: (task) => (task.specialist.cross_fit ? "yes" : "no") },
      ],
      rows: run.tasks,
    }),
  );
}

function costSection(run) {
  const rows = Object.entries(run.costs).map(([model, cost]) => ({ model, ...cost }));
  const counted = (title, key) => ({ title, cell: (row) => count(row[key]), value: (row) => row[key] ?? null, lower: true });
  const seconds = { title: "seconds", cell: (row) => number(row.seconds, 1), value: (row) => row.seconds ?? null, lower: true };
  const validating = { title: "seconds of\nvalidation", cell: (row) => number(row.validation_seconds, 1), value: (row) => row.validation_seconds ?? null, lower: true };
  const trainings = rows.length
    ? table({
        caption: "Each training. A pair or token counts each time the training uses it.",
        columns: [
          { title: "model", text: true, cell: (row) => row.model, value: (row) => row.model },
          ...[["steps", "steps"], ["pairs", "pairs"], ["tokens", "tokens"], ["trained\nparameters", "trained_parameters"]].map((one) => counted(...one)),
          seconds,
          ...(rows.some((row) => "validation_seconds" in row) ? [validating] : []),
        ],
        rows,
      })
    : note("This run did not record what its trainings cost.");
  const stages = run.stages ? stageTables(run.stages, seconds) : [note("On a cluster, the run's page in KFP shows the duration of every stage, and so does MLflow. The page in a local run's folder lists them here.")];
  return section("cost", "Cost", trainings, ...stages);
}

/** Seconds of each kind of stage; a closed details element lists the single stages. */
function stageTables(stages, seconds) {
  const stage = { title: "stage", text: true, cell: (row) => row.stage, value: (row) => row.stage };
  const kinds = [...new Set(stages.map((row) => row.stage))].map((kind) => {
    const some = stages.filter((row) => row.stage === kind);
    return { stage: kind, times: some.length, seconds: some.reduce((sum, row) => sum + row.seconds, 0) };
  });
  const single = table({
    caption: "In the order in which they finished",
    columns: [stage, { title: "name", text: true, cell: (row) => row.name, value: (row) => row.name }, seconds],
    rows: stages,
  });
  return [
    table({
      caption: "Each kind of stage. Some stages run in parallel, so the sum of the seconds exceeds the duration of the run.",
      columns: [stage, { title: "number", cell: (row) => count(row.times), value: (row) => row.times }, seconds],
      rows: kinds,
    }),
    h("details", {}, h("summary", {}, `All ${plural(stages.length, "stage")}`), single),
  ];
}

function configurationSection(run) {
  const rows = Object.entries(run.versions ?? {}).map(([name, version]) => ({ name, version }));
  const software = rows.length
    ? table({
        caption: "Software of this run",
        columns: [
          { title: "package", text: true, cell: (row) => row.name },
          { title: "version", text: true, cell: (row) => row.version },
        ],
        rows,
      })
    : note("This run did not record the versions of its software.");
  return section(
    "configuration",
    "Configuration and versions",
    h("details", {}, h("summary", {}, "The configuration, without cluster, tracking, registry and output"), h("pre", { tabindex: "0" }, run.config)),
    software,
    run.library ? note("Digest of the library's source: ", h("code", {}, run.library)) : null,
  );
}

function limitsSection(run) {
  return section(
    "limits",
    "What this run does not show",
    h("ul", {}, run.limits.map((text) => h("li", {}, withCode(text)))),
  );
}
