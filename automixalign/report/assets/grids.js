// The grids of a run: each point on the validation split, which chooses, and on the test split.

function gridsSection(run) {
  return run.grids?.length ? section("grids", "Grids", ...run.grids.flatMap((grid) => gridTable(run, grid))) : null;
}

function gridTable(run, grid) {
  const isChosen = (point) => point.model === grid.chosen;
  const selected = grid.points.find(isChosen);
  const gap = (split) => ({ title: `worst gap,\n${split}`, cell: (point) => signed(point[split]), value: (point) => point[split], lower: true });
  const setting = (key) => ({ title: key, cell: (point) => String(point.values[key] ?? "–"), value: (point) => point.values[key] ?? null });
  return [
    h("h3", {}, grid.name),
    note(`Chosen on the validation split: ${grid.chosen}, with a worst gap of ${signed(selected.validation)}. The test split had no part in the choice; there, its worst gap is ${signed(selected.test)}. A point that is chosen by its test column looks better than it is.`),
    table({
      caption: `The points of the grid ${grid.name}. Gap: loss minus the specialist's loss, on the worst task.`,
      columns: [
        { title: "model", text: true, cell: (point) => (isChosen(point) ? h("b", {}, `${point.model} (chosen)`) : point.model), value: (point) => point.model },
        ...grid.keys.map(setting),
        gap("validation"),
        gap("test"),
      ],
      rows: grid.points,
    }),
  ];
}
