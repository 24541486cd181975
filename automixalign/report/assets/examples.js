// Prompts with every model's answer side by side.

const LONG_CHARACTERS = 80;

function examplesSection(run) {
  const shown = run.examples.filter(({ prompts }) => prompts.length);
  const without = run.examples.filter(({ prompts }) => !prompts.length).map(({ task }) => task);
  const missing = without.length ? note(`No answers were generated for ${without.join(", ")}: a task needs a verifier or a judge, and evaluation.generate.`) : null;
  const container = h("div", {});
  const families = Object.fromEntries(run.leaderboard.map((entry) => [entry.model, entry.family]));

  function show(task) {
    const { prompts } = shown.find((one) => one.task === task);
    container.replaceChildren(...prompts.map((prompt, at) => promptOf(prompt, `${task}, prompt ${at + 1}`, families)));
  }

  if (shown.length) show(shown[0].task);
  const controls = shown.length > 1 ? h("div", { class: "controls" }, choice("Task", shown.map(({ task }) => [task, task]), show)) : null;
  return section(
    "examples",
    "Answers side by side",
    shown.length
      ? note(`Up to three test prompts of each task: those whose share of passed answers varies most between the generalists and merges (without a verifier: the judge's win rate), then those with the most different answers, then the first of the test split. So they show where models differ, not how good they are. The middle of a text over ${count(run.max_characters)} characters is left out.`)
      : null,
    missing,
    controls,
    container,
  );
}

/** One prompt, what the data expect, and a card for each model. */
function promptOf(prompt, title, families) {
  const expected = prompt.expected === null ? prompt.chosen : [{ role: "", text: prompt.expected }];
  const long = [...expected, ...prompt.answers].some(({ text }) => text.length > LONG_CHARACTERS);
  return h(
    "article",
    { class: "example" },
    h("h3", {}, title),
    messagesOf(prompt.messages),
    h("div", { class: long ? "answers long" : "answers" },
      answerCard(prompt.expected === null ? "chosen in the data" : "expected", null, messagesOf(expected), "expected"),
      prompt.answers.map((answer) => answerCard(answer.model, verdictOf(answer), messageOf({ role: "", text: answer.text }), families[answer.model]))),
  );
}

const answerCard = (title, verdict, text, family) =>
  h("div", { class: COMPARED_FAMILIES.includes(family) ? "answer" : "answer aside" }, h("p", { class: "who" }, h("span", {}, title), verdict), text);

/** Whether an answer passed and the judge prefers it; of several samples, how many. A tie is half a win. */
function verdictOf({ passed, wins, samples }) {
  const marks = [
    isNumber(passed) ? markOf(passed, samples, samples === 1 ? (passed ? "right" : "wrong") : `${passed} of ${samples} right`) : null,
    isNumber(wins) ? markOf(wins, samples, samples === 1 ? `judge: ${wins === 1 ? "wins" : wins ? "ties" : "loses"}` : `judge: ${wins} of ${samples} wins`) : null,
  ].filter(Boolean);
  return marks.length ? h("span", {}, marks) : null;
}

const markOf = (mark, samples, text) =>
  h("span", { class: mark === samples ? "right" : mark ? "mixed" : "wrong" }, `${mark === samples ? "\u2713" : mark ? "\u25d0" : "\u2717"} ${text} `);

const messagesOf = (messages) => h("div", { class: "messages" }, messages.map(messageOf));

/** A text with its line breaks; its writing direction does not change the page's. */
function messageOf({ role, text }) {
  const content = text.trim() ? text : h("em", {}, "(empty)");
  return h("div", { class: "message" }, role ? h("small", {}, role) : null, h("div", { class: "words", dir: "auto" }, content));
}
