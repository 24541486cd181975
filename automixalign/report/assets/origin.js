// Where a run comes from, at the top of its page, and its links to the models' cards.

/** Base model, date, project and machine; what a run did not record is left out. */
function originOf(run) {
  const facts = [
    ["Base model", [run.base_model?.source, run.base_model?.revision && `, commit ${run.base_model.revision.slice(0, 12)}`]],
    ["Finished", [run.date && `${run.date.slice(0, 16).replace("T", " ")} UTC`]],
    ["Project", [run.versions?.automixalign && `AutoMixAlign ${run.versions.automixalign}`, run.commit && `, commit ${run.commit.slice(0, 12)}`]],
    ["Trained on", [machinesOf(run)]],
  ];
  const known = facts.map(([title, parts]) => [title, parts.filter(Boolean)]).filter(([, parts]) => parts.length);
  return h("dl", { class: "origin" }, known.map(([title, parts]) => h("div", {}, h("dt", {}, title), h("dd", {}, parts))));
}

/** The machines of the trainings; if there are several, with their numbers of trainings. */
function machinesOf(run) {
  const names = Object.values(run.costs).map((cost) => cost.machine).filter(Boolean);
  const machines = [...new Set(names)];
  if (machines.length < 2) return machines[0];
  return machines.map((machine) => `${machine} (${plural(names.filter((name) => name === machine).length, "training")})`).join("; ");
}

/** A link from the report's folder to the card in the model's folder. */
function cardLink(run, model) {
  if (!run.cards.includes(model)) return null;
  return h("small", {}, h("a", { href: `../models/${encodeURIComponent(model)}/README.md` }, "card"));
}
