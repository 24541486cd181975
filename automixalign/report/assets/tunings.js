// The searches of merge weights: a table of the tries of each tuned merge.

function tuningsSection(run) {
  const tunings = Object.entries(run.tunings ?? {});
  if (!tunings.length) return null;
  const compared = { lower: true, bold: true };
  const column = (title, value) => ({ title, value, cell: (row) => number(value(row)), ...compared });
  const tables = tunings.map(([model, { tries, scored_pairs, seconds }]) => table({
    caption: `${model}: ${plural(tries.length, "try").replace("trys", "tries")}, ${count(scored_pairs)} pairs scored, ${number(seconds, 1)} seconds`,
    columns: [
      { title: "try", cell: (row) => count(row.at), value: (row) => row.at },
      ...tasksOf(run).map((task) => ({ title: `weight,\n${task}`, cell: (row) => number(row.weights[task]) })),
      column("worst gap", (row) => row.worst_gap),
      ...tasksOf(run).map((task) => column(`gap,\n${task}`, (row) => row.gaps[task])),
    ],
    rows: tries.map((row, index) => ({ at: index + 1, ...row })),
    competes: () => true,
  }));
  return section(
    "tunings",
    "Search of merge weights",
    note("Each try merges the specialists with other task weights, and scores the merge on the validation pairs. The try with the smallest worst gap became the model."),
    ...tables,
  );
}
