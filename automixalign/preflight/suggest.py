"""A configuration for data and a base model that a user names, with settings that fit what is seen of both.

`ama init` writes it. The settings are starting points, each with its reason beside it; none was tuned.
"""

import math
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import yaml

from automixalign.config.data import SourceSpec, TaskSpec
from automixalign.config.experiment import parse_experiment
from automixalign.config.file import parse_yaml, resolve_paths
from automixalign.data.pairs import Pair
from automixalign.data.read_task import open_task
from automixalign.data.reading.row import Unreadable
from automixalign.data.reading.rows import open_source
from automixalign.data.row_formats.registry import registered_formats
from automixalign.data.row_formats.shared.layouts import layout_format
from automixalign.data.store import TRAIN
from automixalign.models.inspect import Outline, is_at_hand, read_outline
from automixalign.models.prepare import transformers_silenced
from automixalign.preflight.data_view import prepared
from automixalign.preflight.full_check import check_in_full, count_usable
from automixalign.preflight.json_schema import HEADER, SCHEMA_FILE
from automixalign.preflight.validate import is_here
from automixalign.quickstart.spec import TINY_POSITIONS
from automixalign.scoring.verifiers.registry import make_verifier
from automixalign.system.errors import AutoMixAlignError, ConfigError, DataError

_FIRST_ROWS = 100
"""Rows that tell the format of a source."""
_MEASURED_LENGTH, _DEFAULT_LENGTH = 2048, 1024
_COVERED = 0.98
"""Share of the pairs of each task that `max_length` leaves whole."""
_SMALL, _MEDIUM, _LARGE = 5e7, 5e8, 1e9
"""Parameters: below, a model is trained in full; up from the last, it needs to save memory."""
_CPU_STEPS = 30
"""The largest number of steps of a specialist on a CPU, so that a first run does not take hours."""
_GUESSED_PAIRS = 2000
"""Of a task that was not read."""
_PARAMETERS = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([BMbm])(?![A-Za-z0-9])")
"""As names of models have them: `1.5B`."""
_SOURCE = "what --base-model and --task name"
"""Names the drafts in messages."""


@dataclass
class _Task:
    """What is seen of a task."""

    name: str
    format: str | None = None
    """None for a source on a network, which is not read."""
    why: str = "on a network, not read here: `ama data` shows it; set `format` if it is not TRL's"
    has_answers: bool = False
    pairs: int | None = None
    """Usable ones."""
    training_pairs: int | None = None


@dataclass
class _Facts:
    """What is seen of the base model, and of the tasks."""

    tasks: list[_Task] = field(default_factory=list)
    parameters: float = _LARGE
    size: str = "unknown, so it counts as large"
    max_length: int = _DEFAULT_LENGTH
    longer: float | None = None
    """Share of the pairs that are longer; None if the lengths are unknown."""


class NoFormatError(DataError):
    """No row format reads the rows of a source.

    Args:
        columns: of the first row.
    """

    def __init__(self, message: str, columns: list[str]) -> None:
        super().__init__(message)
        self.columns = columns


def check_source(task: str, source: Mapping[str, Any]) -> None:
    """Read the first rows of a task's source, if it is on this machine.

    Raises:
        ConfigError: the name or the source is impossible.
        NoFormatError: the rows have columns that no row format reads.
        DataError: the source cannot be read.
    """
    (spec,) = parse_experiment(_draft("tiny", {task: source}), _SOURCE).tasks
    _find_format(spec, None)


def suggest(base_model: str, tasks: Mapping[str, Mapping[str, Any]], gpus: int, name: str, folder: Path) -> str:
    """A configuration with comments, which has passed the checks of `ama validate`.

    Args:
        base_model: its source; a path is relative to the working directory.
        tasks: name -> source of its data, as a configuration has it; with paths as `base_model`.
        gpus: the number of GPUs of the machine that will run it; 0 for its processors.
        name: of the experiment.
        folder: where the configuration will lie, which its paths are then relative to.

    Raises:
        ConfigError: a name or a source is impossible.
        DataError: a source has no row format that is known, or too few rows.
        ModelError: the base model cannot be read.
    """
    draft = _draft(base_model, tasks) | {"name": name}
    with tempfile.TemporaryDirectory() as scratch:
        facts = _look(draft, Path(scratch))
    text = _text(draft, facts, gpus, folder)
    data = parse_yaml(text, _SOURCE)
    resolve_paths(data, folder)
    check_in_full(parse_experiment(data, _SOURCE))
    return text


def _draft(base_model: str, tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    draft: dict[str, Any] = {
        "name": "draft",
        "base_model": {"source": "tiny", "tiny": {"steps": 100}} if base_model == "tiny" else base_model,
        "tasks": [{"name": task, "source": dict(source)} for task, source in tasks.items()],
        "max_length": 64,
        "long_answers": "cut",
        "training": {"batch_size": 1024, "learning_rate": 1e-4},
        "budget": {"specialist": {"epochs": 1}, "generalist": {"epochs": 1}},
        "methods": ["uniform"],
    }
    resolve_paths(draft, Path())
    return draft


def _look(draft: dict[str, Any], scratch: Path) -> _Facts:
    """Read the rows, and the tokenizer and the shape of the base model, if they are on this machine."""
    experiment = parse_experiment(draft, _SOURCE)
    at_hand = is_at_hand(experiment.base_model)
    outline = read_outline(experiment.base_model, scratch) if at_hand else None
    facts = _Facts([_find_format(task, outline) for task in experiment.tasks])
    for spec, task in zip(draft["tasks"], facts.tasks, strict=True):
        if task.format:
            spec["source"].setdefault("format", task.format)
    if outline is not None:
        with transformers_silenced():
            facts.parameters = float(outline.empty_model().num_parameters())
        facts.size = _size(facts.parameters)
    elif named := re.findall(
        r"(?i)(?<![a-z0-9.])(\d+(?:\.\d+)?)(b|m)(?![a-z0-9])", experiment.base_model.source
    ):
        number, unit = named[-1]
        facts.parameters = float(number) * (1e9 if unit.lower() == "b" else 1e6)
        facts.size = f"{_size(facts.parameters)}, by its name"
    here = [task for task in parse_experiment(draft, _SOURCE).tasks if all(map(is_here, task.sources))]
    counts = count_usable(experiment, here)
    for task in facts.tasks:
        task.pairs = task.training_pairs = counts.get(task.name)
    if outline is not None and here:
        _measure_lengths(draft, here, outline, facts)
    return facts


def _find_format(spec: TaskSpec, outline: Outline | None) -> _Task:
    """Find the format of a task's rows: the one that reads the first rows."""
    (source,) = spec.sources
    task = _Task(spec.name)
    if not is_here(source):
        return task
    fits: dict[str, list[Pair]] = {}
    faults: dict[str, AutoMixAlignError] = {}
    # hh-rlhf comes first: trl would guess the prompts of its dialogues.
    names = ("hh-rlhf", "trl", *registered_formats()) if source.format is None else (source.format.name,)
    for name in dict.fromkeys(names):
        as_format = source.model_validate({"format": name, **source.model_dump(exclude_unset=True)})
        try:
            with open_task(spec.model_copy(update={"sources": [as_format]}), 0, make_verifier) as reader:
                pairs = [pair for _, pair in islice(reader, _FIRST_ROWS)]
        except (DataError, ConfigError) as error:
            faults[name] = error
            continue
        if pairs:
            fits[name] = pairs
    if not fits:
        if source.columns is None and source.format is None:
            _refuse_columns(spec.name, source)
        raise next((faults[name] for name in ("trl", *names) if name in faults), None) or DataError(
            f"task {spec.name}: {source.path} holds no usable pair"
        )
    task.format = next(iter(fits))
    task.why = f"all of the first {len(fits[task.format])} rows have this layout"
    is_text = isinstance(fits[task.format][0].prompt, str)
    if is_text and "chat" in fits and outline is not None and outline.tokenizer.chat_template:
        task.format, task.why = "chat", "the texts become messages, because the base model has a chat template"
    task.has_answers = all(pair.answer is not None for pair in fits[task.format])
    return task


def _refuse_columns(task: str, source: SourceSpec) -> None:
    """Ask for a mapping of the columns, if the first row has neither sides nor a layout that is known."""
    with open_source(f"task {task}", source) as rows:
        first = next(iter(rows), None)
    if first is None or isinstance(first.data, Unreadable) or layout_format(first.data):
        return
    if not {"chosen", "rejected"} <= (columns := first.data.keys()):
        mapping = f"{{path: {source.path}, columns: {{prompt: COLUMN, chosen: COLUMN, rejected: COLUMN}}}}"
        raise NoFormatError(
            f"task {task}: no row format reads {source.path}; its columns are {', '.join(columns):.300}. "
            f'Map the prompt and the answers to them: --task "{task}={mapping}"',
            list(columns),
        )


def _measure_lengths(draft: dict[str, Any], tasks: list[TaskSpec], outline: Outline, facts: _Facts) -> None:
    """Tokenise the data, and choose `max_length`."""
    from automixalign.models.load import position_limit

    is_tiny = isinstance(draft["base_model"], dict)
    positions = TINY_POSITIONS if is_tiny else position_limit(outline.config)
    limit = min(positions or _MEASURED_LENGTH, _MEASURED_LENGTH)
    experiment = parse_experiment(draft | {"max_length": limit, "split": _split(facts.tasks)}, _SOURCE)
    with prepared(experiment, tasks, outline) as (card, _):
        histograms = [task["lengths"] for task in card["tasks"]]
        training_pairs = {task["name"]: task["pairs"][TRAIN] for task in card["tasks"]}
    for task in facts.tasks:
        task.training_pairs = training_pairs.get(task.name)
    bins = [(histogram["width"], histogram["pairs"]) for histogram in histograms]

    def covering(width: int, pairs: list[int]) -> int:
        """The length that covers enough pairs; the last bin has those above the limit."""
        return width * (1 + sum(total < _COVERED * sum(pairs) for total in accumulate(pairs[:-2])))

    facts.max_length = max(16, min(limit, max(covering(*each) for each in bins)))
    kept = sum(sum(pairs[: facts.max_length // width]) for width, pairs in bins)
    facts.longer = 1 - kept / sum(sum(pairs) for _, pairs in bins)


def _split(tasks: list[_Task]) -> dict[str, Any]:
    """Larger shares of small data, because an interval of few test pairs is wide."""
    smallest = min((task.pairs for task in tasks if task.pairs is not None), default=_GUESSED_PAIRS)
    if smallest < 200:
        return {"validation": 0.15, "test": 0.25}
    if smallest < 2000:
        return {"validation": 0.1, "test": 0.2}
    return {"validation": 0.1, "test": 0.1, "max_validation": 500, "max_test": 1000}


def _training(facts: _Facts, gpus: int) -> dict[str, Any]:
    """Batch, learning rate and what saves memory, by the size of the model and of the data."""
    size, processes = facts.parameters, max(1, gpus)
    tokens = (2048 if not gpus else 65536 if size < _LARGE else 16384 if size < 4 * _LARGE else 8192) // 2
    micro = 2 ** max(0, int(math.log2(max(1, tokens // facts.max_length))))
    pairs = min(task.training_pairs or _GUESSED_PAIRS for task in facts.tasks)
    wanted = max(8 if pairs < 500 else 32 if gpus else 16, len(facts.tasks))
    micro = min(micro, 2 ** math.ceil(math.log2(wanted / processes)) if wanted > processes else 1)
    training: dict[str, Any] = {"batch_size": micro * processes * math.ceil(wanted / (micro * processes))}
    if micro * processes < training["batch_size"]:
        training["micro_batch_size"] = micro
    if processes > 1:
        training["processes"] = processes
    if size < _SMALL:
        return training | {"learning_rate": 1e-3 if size < 1e6 else 1e-4}
    training["learning_rate"] = 2e-4 if size < _MEDIUM else 5e-5 if size < _LARGE else 1e-5
    if size < _LARGE:
        training["nll_weight"] = 0.2
    if gpus and size >= _LARGE:
        training["gradient_checkpointing"] = True
    return training | {"lora": {"rank": 16, "alpha": 32}}


_REASONS = {
    "batch_size": "pairs of one optimiser step",
    "micro_batch_size": "pairs of one forward pass; lower it if memory runs out",
    "processes": "one for each GPU",
    "learning_rate": "a starting point; try a third and three times of it",
    "nll_weight": "without it, generated answers of small models get worse",
    "gradient_checkpointing": "takes time and saves memory",
    "lora": "a full fine-tuning needs four times the memory of the weights",
}


def _budget(facts: _Facts, training: Mapping[str, Any], gpus: int) -> tuple[dict[str, Any], str]:
    """How long to train, and why."""
    known = [task.training_pairs for task in facts.tasks if task.training_pairs is not None]
    epochs = 1 if not known or min(known) >= _GUESSED_PAIRS else 3
    why = "passes over the training pairs; the generalists see as many pairs as all specialists together"
    steps = [math.ceil(epochs * pairs / training["batch_size"]) for pairs in known]
    if gpus or facts.parameters < _SMALL or not known or max(steps) <= _CPU_STEPS:
        return {"specialist": {"epochs": epochs}, "generalist": {"epochs": epochs}}, why
    why = f"few steps, for a CPU; {{epochs: {epochs}}} would be {max(steps):,} for the largest task"
    total = _CPU_STEPS * len(facts.tasks)
    return {"specialist": {"steps": _CPU_STEPS}, "generalist": {"steps": total}}, why


def _text(draft: Mapping[str, Any], facts: _Facts, gpus: int, folder: Path) -> str:
    """The configuration as YAML with comments."""
    training = _training(facts, gpus)
    budget, budget_why = _budget(facts, training, gpus)
    machine = f"{gpus} GPUs" if gpus > 1 else "one GPU" if gpus else "a CPU"
    length_why = "prompt and answer together, in tokens; the lengths were not measured"
    if facts.longer is not None:
        share = f"{facts.longer:.1%} of the pairs are longer" if facts.longer else "no pair is longer"
        length_why = f"prompt and answer together, in tokens; {share}"
    lines = [
        f"{HEADER}{SCHEMA_FILE}",
        f"# Written by `ama init` for {machine}. Every key: `ama schema`, or docs/configuration.md.",
        f"name: {_yaml(draft['name'])}",
        "seed: 0",
        f"base_model: {_yaml(_relative(draft['base_model'], folder))}  # parameters: {facts.size}",
        "tasks:",
    ]
    for spec, task in zip(draft["tasks"], facts.tasks, strict=True):
        source: Any = {**spec["source"], "path": _relative(spec["source"]["path"], folder)}
        if source.get("format") == ("chat" if "columns" in source else "trl"):
            del source["format"]
        if source.keys() == {"path"}:
            source = source["path"]
        count = f"{task.pairs:,} usable pairs; " if task.pairs is not None else ""
        lines += [f"  - name: {task.name}", f"    source: {_yaml(source)}  # {count}{task.why}"]
        if task.has_answers:
            lines.append("    # verifier: exact  # the rows have answers: checks generated ones (docs/data.md)")
    lines += [
        f"max_length: {facts.max_length}  # {length_why}",
        "long_answers: drop  # pairs with a longer answer; `cut` trains on its beginning",
        f"split: {_yaml(_split(facts.tasks))}  # shares of prompts to choose a model on, and to report on",
        "training:",
        *(f"  {key}: {_yaml(value)}  # {_REASONS[key]}" for key, value in training.items()),
        f"budget:  # {budget_why}",
        *(f"  {phase}: {_yaml(length)}" for phase, length in budget.items()),
        "methods:  # the generalists; docs/method.md explains each",
        "  - standard  # pairs of all tasks in one pool",
        "  - uniform  # equal shares of the tasks, the baseline",
        "  - ama-r  # AutoMixAlign, by the weights of the tasks in the loss",
        "  - ama-s  # AutoMixAlign, by the shares of the tasks in a batch",
    ]
    if len(facts.tasks) > 1:
        lines.append("merges: [linear, ties]  # of the specialists' weights")
    lines.append(
        f"evaluation: {{batch_size: {16 if facts.parameters >= _SMALL else 64}}}  # sequences at a time"
    )
    return "\n".join(lines) + "\n"


def _relative(source: Any, folder: Path) -> Any:
    """A source as the configuration in `folder` names it; only paths change."""
    if not isinstance(source, str) or not Path(source).exists():
        return source
    path = Path(source).absolute()
    try:
        relative = path.relative_to(folder.absolute())
    except ValueError:
        return str(path)
    return str(relative)


def _yaml(value: Any) -> str:
    """A value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _size(parameters: float) -> str:
    return f"{parameters / 1e9:.1f} billion" if parameters >= 1e9 else f"{parameters / 1e6:,.1f} million"
