// The sections of one run's page.

const FOR_ALL_TASKS = ["generalist", "merge"];
const METHOD_CURVES = [["weights", "task weight"], ["excess", "training excess"]];
const TRAINING_CURVES = [["loss", "loss"], ["accuracy", "reward accuracy"], ["margin", "reward margin"], ["clipped", "share of clipped pairs"]];
const DROPS = {
  identical_sides: "both sides the same", duplicate: "duplicate", contradictory: "contradictory twins", over_limit: "over the limit",
  prompt_too_long: "prompt too long", identical_when_cut: "the same when cut", over_cap: "over the split's cap",
};

function runSections(run) {
  return [
    leaderboardSection(run),
    barsSection(run),
    trajectoriesSection(run),
    curvesSection(run),
    dataSection(run),
    costSection(run),
    configurationSection(run),
    limitsSection(run),
  ];
}

const tasksOf = (run) => run.tasks.map((task) => task.name);
const competesIn = (entry) => FOR_ALL_TASKS.includes(entry.family);
const isLower = (run, metric) => run.metrics[metric] === "lower";

/** The task on which a model is worst by a metric. */
function worstTask(run, entry, metric) {
  const tasks = Object.keys(entry.tasks).filter((task) => metric in entry.tasks[task]);
  const worse = (a, b) => (isLower(run, metric) ? a > b : a < b);
  return tasks.reduce((worst, task) => (worst === null || worse(entry.tasks[task][metric], entry.tasks[worst][metric]) ? task : worst), null);
}

function leaderboardSection(run) {
  const metrics = Object.keys(run.metrics).filter((metric) => run.leaderboard.some((entry) => metric in entry.worst));
  const place = h("div", {});
  const OVERVIEW = "";
  const fixed = [
    { title: "model", text: true, cell: (entry) => entry.model, value: (entry) => entry.model },
    { title: "family", text: true, cell: (entry) => entry.family, value: (entry) => entry.family },
  ];

  function show(metric) {
    const shown = metric === OVERVIEW ? metrics.flatMap(overTasks) : eachTask(metric);
    const what = metric === OVERVIEW ? "every metric on the worst task, which is named below it, and on average" : `${titleOf(metric)} on every task; each model's worst task is underlined`;
    place.replaceChildren(table({
      caption: `Held-out test split: ${what}. Best generalist or merge in bold.`,
      columns: [...fixed, ...shown],
      rows: run.leaderboard,
      competes: competesIn,
      aside: (entry) => !competesIn(entry),
    }));
  }

  function overTasks(metric) {
    return ["worst", "average"].map((view) => ({
      title: `${titleOf(view)}\n${titleOf(metric)}`,
      value: (entry) => entry[view][metric] ?? null,
      cell: (entry) => [number(entry[view][metric]), view === "worst" && metric in entry.worst ? h("small", {}, worstTask(run, entry, metric)) : null],
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
        return [number(entry.tasks[task][metric]), worst ? h("span", { class: "hidden" }, " worst task") : null];
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
    note("Excess: mean over a task's test pairs of max(loss − specialist's loss, 0). Accuracy: share of pairs whose chosen answer has the larger reward. Pass rate: share of greedy answers that a verifier passes. Excess and loss: less is better."),
    h("div", { class: "controls" }, choice("Show", [[OVERVIEW, "worst and mean of every metric"], ...metrics.map((metric) => [metric, `${titleOf(metric)}, task by task`])], show)),
    place,
  );
}

function barsSection(run) {
  const models = run.leaderboard.filter(competesIn);
  const specialist = (task) => run.leaderboard.find((entry) => entry.model === `specialist-${task}`);

  function bars(metric, task, high, mark) {
    const values = models.map((entry) => entry.tasks[task][metric]);
    const best = isLower(run, metric) ? Math.min(...values) : Math.max(...values);
    const rows = models.map((entry, at) => ({ name: entry.model, value: values[at], best: values[at] === best }));
    return barChart({ title: task, rows, high, mark });
  }

  const highest = Math.max(...models.flatMap((entry) => Object.values(entry.tasks).map((task) => task.excess)));
  const verified = tasksOf(run).filter((task) => models.every((entry) => "pass_rate" in entry.tasks[task]));
  const passRates = verified.length
    ? [
        h("h3", {}, "Share of greedy answers that pass"),
        h("p", { class: "quiet" }, h("span", { class: "key-mark" }), "the task's specialist"),
        h("div", { class: "charts" }, verified.map((task) => bars("pass_rate", task, 1, specialist(task).tasks[task].pass_rate))),
      ]
    : [];
  return section(
    "tasks",
    "Task by task, against the specialist",
    h("h3", {}, "Excess over the specialist"),
    note("0 is as good as the specialist on every pair; shorter is better. One scale for all tasks."),
    h("div", { class: "charts" }, tasksOf(run).map((task) => bars("excess", task, highest, null))),
    ...passRates,
  );
}

function trajectoriesSection(run) {
  const models = run.leaderboard.filter((entry) => entry.family === "generalist").map((entry) => entry.model);
  const moving = models.find((name) => Object.values(run.trainings[name].weights).some((curve) => new Set(curve).size > 1));
  return section(
    "trajectories",
    "Task weights and excess over the training",
    note(`Weights as they stood in each step; excess on the training pairs, a running mean over ${run.trainings[models[0]].window} steps. Point at a chart, or use the arrow keys, to read a step.`),
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
    note(`On the training pairs, running means over ${windows.join(" or ")} steps. One scale for all models. A pair is clipped where its loss is at or below the specialist's.`),
    ...trainingCharts({ label: "Model", tasks: tasksOf(run), trainings: run.trainings, models, metrics: TRAINING_CURVES, chosen: generalists[0] }),
  );
}

function dataSection(run) {
  const name = { title: "task", text: true, cell: (task) => task.name };
  const pairs = (split) => ({ title: split, cell: (task) => count(task.pairs[split]) });
  const tokens = (side) => ({ title: `${side},\nmean tokens`, cell: (task) => number(task.tokens[side].mean, 1) });
  const drops = (task) => Object.entries(task.rows).filter(([reason, many]) => many && !["read", "cut"].includes(reason));
  const dropText = (task) => drops(task).map(([reason, many]) => `${count(many)} ${DROPS[reason] ?? reason}`).join(", ") || "none";
  const loss = (split) => ({ title: `loss,\n${split}`, cell: (task) => number(task.specialist.mean_loss[split]) });
  const clipping = [...new Set(run.tasks.flatMap((task) => Object.keys(task.clipped)))];
  return section(
    "data",
    "What the data was",
    ...run.warnings.map((text) => h("p", { class: "warning" }, `Warning: ${text}`)),
    table({
      caption: "Pairs of each split, and what was dropped before",
      columns: [
        name,
        { title: "source", text: true, cell: (task) => task.source },
        { title: "rows read", cell: (task) => count(task.rows.read) },
        ...["train", "validation", "test"].map(pairs),
        { title: "dropped", text: true, wrap: true, cell: dropText },
        { title: "answers\ncut", cell: (task) => count(task.rows.cut) },
        ...["prompt", "chosen", "rejected"].map(tokens),
      ],
      rows: run.tasks,
    }),
    h("h3", {}, "How noisy the training labels look"),
    note("Two estimates, neither of them the truth. Contradicted: share of the training pairs that the task's own specialist ranks the other way; too low where it knows its pairs by heart (see the gap below). Clipped: share of the training pairs seen in the last quarter of a training whose loss was at or below the specialist's, which a method with the clipped excess does not train on; it counts noise together with every clean pair that is simply learnt, so it is as a rule too high, often by far. Swapped on purpose: known, by label_noise."),
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
    h("h3", {}, "How well specialists know their training pairs"),
    note("Gap: mean loss of the held-out pairs minus that of the training pairs. A large one means the specialist knows these by heart, and its losses there are too low a mark; cross-fitting scores each half of the pairs by a specialist of the other half. Swapped training pairs pull the gap down."),
    table({
      caption: "Each specialist on its own task",
      columns: [
        name,
        ...["train", "validation", "test"].map(loss),
        { title: "gap", cell: (task) => signed(task.specialist.gap) },
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
  const trainings = rows.length
    ? table({
        caption: "Each training; pairs and tokens count every time one was seen",
        columns: [
          { title: "model", text: true, cell: (row) => row.model, value: (row) => row.model },
          ...[["steps", "steps"], ["pairs", "pairs"], ["tokens", "tokens"], ["trained\nparameters", "trained_parameters"]].map((one) => counted(...one)),
          seconds,
        ],
        rows,
      })
    : note("What the trainings cost was not kept with this run.");
  const stages = run.stages ? stageTables(run.stages, seconds) : [note(withCode("Seconds of the other steps: `ama report RUN` adds them from the logs of a local run."))];
  return section("cost", "Cost", trainings, ...stages);
}

/** Seconds by kind of step, and, folded away, of each step. */
function stageTables(stages, seconds) {
  const stage = { title: "step", text: true, cell: (row) => row.stage, value: (row) => row.stage };
  const kinds = [...new Set(stages.map((row) => row.stage))].map((kind) => {
    const some = stages.filter((row) => row.stage === kind);
    return { stage: kind, times: some.length, seconds: some.reduce((sum, row) => sum + row.seconds, 0) };
  });
  const single = table({
    caption: "In the order in which they ended",
    columns: [stage, { title: "of", text: true, cell: (row) => row.name, value: (row) => row.name }, seconds],
    rows: stages,
  });
  return [
    table({
      caption: "Each kind of step; some ran side by side, so the seconds add up to more than the run took",
      columns: [stage, { title: "times", cell: (row) => count(row.times), value: (row) => row.times }, seconds],
      rows: kinds,
    }),
    h("details", {}, h("summary", {}, `Each of the ${plural(stages.length, "step")}`), single),
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
    : note("The versions of the software were not kept with this run.");
  return section(
    "configuration",
    "Configuration and versions",
    h("details", {}, h("summary", {}, "The resolved configuration"), h("pre", { tabindex: "0" }, run.config)),
    software,
    run.library ? note("Digest of the library's source: ", h("code", {}, run.library)) : null,
  );
}

function limitsSection(run) {
  return section(
    "limits",
    "What may not be concluded",
    h("ul", {}, run.limits.map((text) => h("li", {}, withCode(text)))),
    table({
      caption: "How exact the accuracies are: a rough binomial standard error (2 pairs added to either side)",
      columns: [
        { title: "task", text: true, cell: (row) => row.task },
        { title: "test pairs", cell: (row) => count(row.pairs) },
        { title: `accuracy of\n${run.accuracy_errors[0].model}`, cell: (row) => number(row.accuracy) },
        { title: "standard\nerror", cell: (row) => `± ${number(row.standard_error)}` },
      ],
      rows: run.accuracy_errors,
    }),
    note("Two models are scored on the same pairs, so their difference may be more exact than this; the choice of seed and data is not in it."),
  );
}
