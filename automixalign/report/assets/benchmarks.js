// The results on benchmarks: one column for each, with its first metric.

function benchmarksSection(run) {
  const solved = run.leaderboard.filter((entry) => entry.benchmarks);
  if (!solved.length) return null;
  const columns = Object.entries(solved[0].benchmarks).map(([name, metrics]) => {
    const [metric] = Object.keys(metrics);
    const value = (entry) => entry.benchmarks[name][metric];
    const error = (entry) => entry.benchmarks[name][`${metric}_stderr`];
    const cell = (entry) => (error(entry) === undefined ? number(value(entry)) : `${number(value(entry))} ± ${number(error(entry))}`);
    return { title: `${name}\n${metric}`, value, cell };
  });
  return section(
    "benchmarks",
    "Benchmarks",
    note("Measured by lm-evaluation-harness, each with its standard error. Specialists solve no benchmarks, and the results choose no model. benchmarks/MODEL/ in the run folder has all metrics, and every example."),
    table({
      caption: "The metric that heads each benchmark",
      columns: [{ title: "model", text: true, cell: (entry) => entry.model, value: (entry) => entry.model }, ...columns],
      rows: solved,
      aside: (entry) => !isCompared(entry),
    }),
  );
}
