"""The model card of a trained model: a `README.md` that says what it is, how it was made and how good it is.

The front matter follows the model hub (https://huggingface.co/docs/hub/model-cards). The card names no path of
this machine, so it can leave it with the model.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from automixalign.config.experiment import Experiment
from automixalign.config.merges import MergeSpec
from automixalign.config.methods import MethodSpec
from automixalign.config.training import Budget
from automixalign.data.store import SPLITS, read_card
from automixalign.models.base_address import BaseAddress, read_address
from automixalign.models.base_card import CARD, read_licence
from automixalign.models.safety import is_adapter
from automixalign.report import leaderboard
from automixalign.report.facts.limits import limits
from automixalign.report.leaderboard import Entry
from automixalign.report.run_models import MODELS
from automixalign.report.runs import Run
from automixalign.scoring.metrics.registry import ranked_metrics
from automixalign.storage import files, s3
from automixalign.system.errors import ConfigError
from automixalign.system.flatten import flatten
from automixalign.system.schema import did_you_mean

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

Form = Literal["full", "adapter"]
"""What the folder of the card holds: a full model, or a LoRA adapter."""
_CHAT_TEMPLATE = "chat_template.jinja"
"""Where transformers saves it; importing transformers to ask it would take seconds."""
_BASELINES = ("reference", "uniform")
_METHOD_PAPER = "https://arxiv.org/abs/2506.00569"
_PACKAGES = ("automixalign", "python", "torch", "transformers", "trl", "peft", "mergekit")


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a card tells of the run that made a model.

    Args:
        experiment: the configuration.
        entries: the leaderboard.
        data: the prepared splits, with their card.
        base_model: the prepared base model.
        costs: generalist or specialist -> what its training returned.
        tunings: merge -> the search of its weights.
        versions: of the software of the run.
        library: digest of this project's code.
        commit: git commit of this project's code; "" if unknown.
    """

    experiment: Experiment
    entries: Sequence[Entry]
    data: Path
    base_model: Path
    costs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tunings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    library: str = ""
    commit: str = ""

    @classmethod
    def of_run(cls, run: Run) -> "RunFacts":
        """The facts in a run folder.

        Raises:
            ConfigError: a part of the run folder is missing.
        """
        page = run.page_facts()
        facts = cls(
            experiment=run.experiment,
            entries=run.entries,
            data=run.folder / "data",
            base_model=run.folder / "models" / "reference",
            costs=page.get("costs") or {},
            tunings=page.get("tunings") or {},
            versions=page.get("versions") or {},
            library=page.get("library") or "",
            commit=page.get("commit") or "",
        )
        for folder in (facts.data, facts.base_model):
            if not folder.is_dir():
                raise ConfigError(f"{run.folder} is incomplete: there is no {folder.relative_to(run.folder)}")
        return facts

    def merge_weights(self, spec: MergeSpec) -> Mapping[str, float | str]:
        """Task -> its weight in a merge; one entry for tuned weights that the facts do not have."""
        if not isinstance(spec.weights, str):
            return spec.weights
        tries = self.tunings.get(spec.name, {}).get("tries")
        if tries is None:
            return {"each task": "tuned on the validation split"}
        weights: Mapping[str, float] = min(tries, key=lambda one: float(one["worst_gap"]))["weights"]
        return weights

    def entry(self, model: str) -> Entry:
        """A model's line in the leaderboard.

        Raises:
            ConfigError: there is no such model.
        """
        found = next((entry for entry in self.entries if entry["model"] == model), None)
        if found is None:
            names = [entry["model"] for entry in self.entries]
            hint = did_you_mean(model, names)
            raise ConfigError(f"{model}: the run has no such model{hint}; it has: {', '.join(names)}")
        return found


def write_cards(folder: Path) -> None:
    """Write the card of each trained model of a finished run into its folder in `models/`.

    The reference model keeps the card of its base model.

    Raises:
        ConfigError: a part of the run folder is missing.
    """
    run = Run.read(folder)
    facts = RunFacts.of_run(run)
    for entry in run.entries:
        if entry["family"] != "reference":
            model = folder / MODELS / entry["model"]
            write_model_card(model, facts, entry["model"], "adapter" if is_adapter(model) else "full")


def write_model_card(folder: Path, facts: RunFacts, model: str, form: Form = "full", address: str = "") -> Path:
    """Write the card of a model into its folder, as `README.md`; see `model_card`."""
    path = folder / CARD
    files.write_text(path, str(model_card(facts, model, form, address)))
    return path


def model_card(facts: RunFacts, model: str, form: Form = "full", address: str = "") -> "ModelCard":
    """The card of a model.

    Args:
        facts: of the run.
        model: its name in the leaderboard.
        form: what is handed on.
        address: how others load it, such as a hub id; by default the model's name, for a folder of that name.

    Raises:
        ConfigError: the run has no such model.
    """
    from huggingface_hub import ModelCard, ModelCardData

    entry, card = facts.entry(model), read_card(facts.data)
    address_of_base, licence = read_address(facts.base_model), read_licence(facts.base_model)
    hub = address_of_base if address_of_base and not address_of_base.is_local else None
    data = ModelCardData(
        base_model=hub.name if hub else None,
        **licence,
        library_name="peft" if form == "adapter" else "transformers",
        pipeline_tag="text-generation",
        tags=_tags(facts, entry, form),
        datasets=_hub_datasets(card) or None,
        model_name=model,
        eval_results=_eval_results(entry, card),
    )
    sections = [
        ("", _summary(facts, entry, hub, licence, form)),
        ("How to load it", _snippet(facts, form, address or model)),
        ("Method", _method(facts, entry)),
        ("Data", _data(card)),
        ("Results on the test split", _results(facts, model)),
        ("How it was chosen", _choice(facts, entry)),
        ("What may not be concluded", _bullets(_limits(facts, card))),
        ("How to make it again", _origin(facts)),
    ]
    text = "\n\n".join(f"## {title}\n\n{body}" if title else body for title, body in sections)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n")


def _tags(facts: RunFacts, entry: Entry, form: Form) -> list[str]:
    spec = _spec(facts.experiment, entry["model"])
    method = [spec.method] if spec else []
    trained = ["dpo", "preference-optimization"] if entry["family"] != "reference" else []
    return ["automixalign", entry["family"], *method, *trained, *(["lora"] if form == "adapter" else [])]


def _spec(experiment: Experiment, model: str) -> MethodSpec | MergeSpec | None:
    """The section of a generalist or merge in the configuration."""
    specs: Iterable[MethodSpec | MergeSpec] = (*experiment.methods, *experiment.merges)
    return next((spec for spec in specs if spec.name == model), None)


def _source_name(source: Mapping[str, Any]) -> str:
    """A source of rows without a path of this machine: of a file or folder there, its name alone."""
    path = str(source["path"])
    if source.get("commit") or s3.is_uri(path) or path.startswith("synthetic:"):
        return path
    return Path(path).name


def _hub_datasets(card: Mapping[str, Any]) -> list[str]:
    sources = (source for task in card["tasks"] for source in task["sources"])
    return list(dict.fromkeys(source["path"] for source in sources if source.get("commit")))


def _eval_results(entry: Entry, card: Mapping[str, Any]) -> "list[EvalResult]":
    from huggingface_hub import EvalResult

    results = []
    for task in card["tasks"]:
        (source, *others) = task["sources"]
        of_hub = bool(source.get("commit")) and not others
        results += [
            EvalResult(
                task_type="text-generation",
                dataset_type=source["path"] if of_hub else task["name"],
                dataset_name=task["name"],
                dataset_split="test",
                dataset_revision=source["commit"] if of_hub else None,
                metric_type=metric,
                metric_value=round(float(value), 6),
            )
            for metric, value in entry["tasks"][task["name"]].items()
            if metric in ranked_metrics()
        ]
    return results


def _summary(
    facts: RunFacts, entry: Entry, hub: BaseAddress | None, licence: Mapping[str, str], form: Form
) -> str:
    experiment, model = facts.experiment, entry["model"]
    tasks = ", ".join(task.name for task in experiment.tasks)
    spec = _spec(experiment, model)
    kinds = {
        "reference": "The base model of a run of AutoMixAlign, not trained.",
        "specialist": "A language model that was aligned to one task by DPO.",
        "generalist": f"A language model that was aligned to {len(experiment.tasks)} tasks ({tasks}) by "
        f"`{spec.method if spec else ''}`.",
        "merge": f"A merge (`{spec.method if spec else ''}`) of {len(experiment.tasks)} language models, each "
        f"aligned to one task by DPO ({tasks}).",
    }
    origin = f"`{hub.name}`" if hub else f"`{plain(base_name(experiment))}`, which is not on the model hub"
    if hub and hub.revision:
        origin += f", commit `{hub.revision}`"
    what = "a LoRA adapter; the base model is loaded with it" if form == "adapter" else "a full model"
    licence_name = plain(licence.get("license_name", licence.get("license", "")))
    terms = f"`{licence_name}`" if licence_name else "unknown, because no card of it names one"
    return "\n".join(
        [
            f"# {model} of {experiment.name}",
            "",
            kinds[entry["family"]],
            "",
            f"- Base model: {origin}.",
            f"- Files: {what}, in safetensors.",
            *_precision(experiment, entry["family"]),
            f"- Licence of the base model: {terms}. The data may have other licences.",
            f"- Made with [AutoMixAlign]({_METHOD_PAPER}).",
        ]
    )


def _precision(experiment: Experiment, family: str) -> list[str]:
    """Which base model was measured, if it was quantised."""
    if (bits := experiment.loading.quantize) is None:
        return []
    if family == "merge":
        return [f"- Measured with the base model in full; the models it is compared with had theirs in {bits}."]
    return [
        f"- Trained and measured with the base model in {bits} (bitsandbytes), which is not in these files. "
        "With the base in full, numbers and answers differ slightly."
    ]


def base_name(experiment: Experiment) -> str:
    """The base model without a path of this machine: of a file or folder there, its name alone."""
    source = experiment.base_model.source
    return source if s3.is_uri(source) or source.startswith(("models:/", "package:")) else Path(source).name


def _snippet(facts: RunFacts, form: Form, address: str) -> str:
    if form == "adapter":
        loader = "AutoPeftModelForCausalLM"
        imports = [f"from peft import {loader}", "from transformers import AutoTokenizer"]
    else:
        loader = "AutoModelForCausalLM"
        imports = [f"from transformers import {loader}, AutoTokenizer"]
    prompt = (
        [
            'messages = [{"role": "user", "content": "Hello"}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
            ")",
        ]
        if (facts.base_model / _CHAT_TEMPLATE).is_file()
        else ['inputs = tokenizer("Hello", return_tensors="pt")']
    )
    lines = [
        *imports,
        "",
        f"name = {json.dumps(address)}  # the hub id, or the folder of this file",
        "tokenizer = AutoTokenizer.from_pretrained(name)",
        f'model = {loader}.from_pretrained(name, dtype="auto")',
        *prompt,
        "answer = model.generate(**inputs, max_new_tokens=256)",
        'print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]
    return "\n".join(["```python", *lines, "```"])


def _method(facts: RunFacts, entry: Entry) -> str:
    experiment, model, family = facts.experiment, entry["model"], entry["family"]
    if family == "reference":
        return "The base model, as the run used it: nothing was trained."
    training, spec = experiment.training, _spec(experiment, model)
    rows: dict[str, Any] = {}
    if isinstance(spec, MethodSpec):
        rows |= {"mixing method": spec.method, "starts from": spec.init and f"the merge {spec.init}"}
        rows |= dict(flatten(spec.all_options()))
        rows["average_iterates"] = spec.average_iterates
    elif spec is not None:
        weights = {f"weight of {task}": weight for task, weight in facts.merge_weights(spec).items()}
        rows = {"merge method (mergekit)": spec.method, **spec.parameters, **weights}
    budgets = experiment.budget
    budget = spec.budget(budgets.generalist) if isinstance(spec, MethodSpec) else budgets.specialist
    share = training.warmup
    warmup = f"{training.warmup_steps} warm-up steps" if share is None else f"{share:.0%} of the steps warm up"
    rows |= {
        "loss": training.loss_type,
        "beta": training.beta,
        "label_smoothing": training.label_smoothing,
        "nll_weight": training.nll_weight,
        "learning_rate": budget.learning_rate or training.learning_rate,
        "lr_scheduler": f"{training.lr_scheduler}, {warmup}",
        **_length(budget, facts.costs.get(model, {})),
        "keep": "best" if training.keep == "best" else None,
        "batch_size": training.batch_size,
        "max_length": f"{experiment.max_length} tokens",
        "seed": experiment.seed,
    }
    if training.lora:
        modules = training.lora.target_modules
        targets = modules if isinstance(modules, str) else ", ".join(modules)
        rows |= {"LoRA rank": training.lora.rank, "LoRA alpha": training.lora.alpha, "LoRA modules": targets}
        kinds = {"DoRA": training.lora.dora, "rsLoRA": training.lora.rslora}
        rows["LoRA variant"] = ", ".join(name for name, used in kinds.items() if used)
        rows["bits of the base's weights"] = training.lora.quantize
    elif training.trainable:
        rows["trained parameters"] = ", ".join(training.trainable)
    note = "From `loss` on, the settings are those of the specialists.\n\n" if family == "merge" else ""
    cells = [[f"`{key}`" if key.isidentifier() else key, _value(value)] for key, value in rows.items()]
    return note + _table(["setting", "value"], [row for row in cells if row[1]])


def _length(budget: Budget, cost: Mapping[str, Any]) -> dict[str, Any]:
    if "steps" in cost:
        return {"steps": int(cost["steps"]), "pairs seen": f"{cost['pairs']:,.0f}" if "pairs" in cost else None}
    return {"steps": budget.steps, "epochs": budget.epochs}


def _value(value: Any) -> str:
    """A setting as a cell; empty for one that is not set."""
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else f"{value}"


def _data(card: Mapping[str, Any]) -> str:
    rows = []
    for task in card["tasks"]:
        for number, source in enumerate(task["sources"]):
            name = f"`{plain(_source_name(source))}`"
            if source.get("commit"):
                name += f" at `{source['commit'][:12]}`"
            sizes = [f"{source['pairs'][split]:,}" for split in SPLITS]
            digest = "" if number or "digest" not in task else f"`{task['digest'][:16]}`"
            rows.append([task["name"], name, f"{source['rows'].get('read', 0):,}", *sizes, digest])
    header = ["task", "source", "rows read", *(f"{split} pairs" for split in SPLITS), "digest of the splits"]
    return _table(header, rows)


def _results(facts: RunFacts, model: str) -> str:
    shown = [entry for entry in facts.entries if entry["model"] in (model, *_BASELINES)]
    shown.sort(key=lambda entry: entry["model"] != model)
    header, rows = leaderboard.table(shown)
    parts = [_table(header, [[cell.replace("**", "") for cell in row] for row in rows])]
    parts.append(_table(*leaderboard.details(shown)))
    notes = [
        "The *gap* is the mean over test pairs of (loss - loss of the task's specialist), the *excess* that of "
        "max(loss - loss of the task's specialist, 0). Lower is better for gap, excess and loss, higher for "
        "accuracy, margin and pass rate."
    ]
    if any(entry.get("intervals") for entry in shown):
        notes.append(
            "Brackets hold 95 % intervals, from a bootstrap over prompts. They show how much the test data may "
            "vary. They do not show how much another seed would change the model."
        )
    return "\n\n".join([*parts, " ".join(notes)])


def _choice(facts: RunFacts, entry: Entry) -> str:
    """How the run chose among its models, and whether it chose this one."""
    rivals = sum(each["family"] in leaderboard.CANDIDATES for each in facts.entries)
    chosen = leaderboard.chosen(facts.entries)
    others = f"The run has {rivals} generalists and merges. {leaderboard.choice(facts.entries)}"
    kept = facts.costs.get(entry["model"], {}).get("kept_step")
    if facts.experiment.training.keep == "best" and kept is not None:
        measure = "loss" if entry["family"] == "specialist" else "gap on the worst task"
        others += (
            f" The weights are those of step {int(kept)} of its training, which had the smallest {measure} "
            "on a sample of the validation pairs."
        )
    if chosen is None or chosen["model"] == entry["model"]:
        return others
    return f"{others} This card is of {entry['model']}, which the run did not choose."


def _limits(facts: RunFacts, card: Mapping[str, Any]) -> list[str]:
    return [
        *limits(facts.experiment, facts.costs, card["tasks"]),
        "All results are on data like the training data. Nothing was measured on other tasks, on safety, or "
        "by people.",
    ]


def _origin(facts: RunFacts) -> str:
    lines = [f"Run `{facts.experiment.name}`, seed {facts.experiment.seed}."]
    if facts.commit:
        lines.append(f"Code of AutoMixAlign: commit `{facts.commit}`.")
    if facts.library:
        lines.append(f"Digest of the code that computed the numbers: `{facts.library}`.")
    if used := [f"{name} {facts.versions[name]}" for name in _PACKAGES if name in facts.versions]:
        lines.append(f"Versions: {', '.join(used)}.")
    return _bullets(lines)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def plain(text: str) -> str:
    """A text for a code span in a cell of a table."""
    return " ".join(text.split()).replace("`", "'").replace("|", "\\|")


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows))
