"""Find benchmarks by name or file, refuse what cannot run, and make what lm-evaluation-harness runs."""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

from automixalign.config.evaluation import BenchmarkSpec
from automixalign.config.sources import BenchmarkFile, parse_benchmark
from automixalign.scoring.benchmarks.task_file import TaskFile, read_task_file
from automixalign.system.errors import ConfigError, DataError
from automixalign.system.schema import did_you_mean

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

PACKAGE = "lm_eval"


def check_benchmarks(benchmarks: Sequence[BenchmarkSpec]) -> str:
    """Refuse benchmarks that cannot run here, before any work.

    Returns:
        A text that changes with the version of lm-evaluation-harness and with each file of the user's tasks.
        Tasks that are known by name have no other digest, and neither has data on the hub.

    Raises:
        ConfigError: lm-evaluation-harness is not installed, has no such task, or the task cannot run here.
    """
    if not benchmarks:
        return ""
    if importlib.util.find_spec(PACKAGE) is None:
        raise ConfigError(
            "benchmarks: they need lm-evaluation-harness, which is not installed here; "
            "try: pip install 'automixalign[bench]'"
        )
    fingerprints = [version()]
    for number, spec in enumerate(benchmarks):
        source = parse_benchmark(number, spec.task)
        key = f"benchmarks.{number}"
        if isinstance(source, BenchmarkFile):
            task = read_task_file(source)
            _check_config(key, spec, task.config)
            fingerprints.append(task.fingerprint())
        else:
            _check_config(key, spec, _named_config(key, spec.task))
    return " ".join(fingerprints)


def version() -> str:
    """The version of lm-evaluation-harness."""
    return metadata.version(PACKAGE)


def task_files(benchmarks: Sequence[BenchmarkSpec]) -> Iterator[TaskFile]:
    """The tasks of the user among benchmarks.

    Raises:
        ConfigError: see `read_task_file`.
    """
    for number, spec in enumerate(benchmarks):
        source = parse_benchmark(number, spec.task)
        if isinstance(source, BenchmarkFile):
            yield read_task_file(source)


def load_benchmark(number: int, spec: BenchmarkSpec) -> "Task | Group":
    """Make the task or group of a benchmark: import its code, and read its examples.

    Raises:
        ConfigError: it cannot run.
        DataError: it cannot be loaded, because data or a package that it needs is missing.
    """
    from lm_eval.api.group import Group

    source = parse_benchmark(number, spec.task)
    key = f"benchmarks.{number}"
    try:
        if isinstance(source, BenchmarkFile):
            what = dict(read_task_file(source, run_code=True).config)
            loaded = _manager(False).load([what])
        else:
            loaded = _manager(True).load([spec.task])
    except ConfigError:
        raise
    except Exception as error:  # of datasets, of the hub, or of the task's own code
        cause = error.__cause__ or error  # `datasets` hides what is wrong with a file in the cause
        advice = "check the network, HF_ENDPOINT and HF_HUB_OFFLINE, and the packages that the task needs"
        if isinstance(source, BenchmarkFile) and not read_task_file(source).is_on_hub:
            advice = (
                f"check that {source.path} names metrics, splits and columns that exist, and its data files"
            )
        raise DataError(
            f"{key}: {spec.name} cannot be loaded: {type(cause).__name__}: {cause}\n{advice}"
        ) from error
    group = loaded.get("groups", {}).get(spec.name)
    for task in loaded["tasks"].values():
        _check_config(key, spec, {name: task.get_config(name) for name in ("num_fewshot", "unsafe_code")})
    return group if isinstance(group, Group) else next(iter(loaded["tasks"].values()))


@cache
def _manager(with_named_tasks: bool) -> "TaskManager":
    """Finding the named tasks takes five seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=with_named_tasks)


def _named_config(key: str, name: str) -> Mapping[str, Any]:
    """The configuration of a task or group that comes with lm-evaluation-harness."""
    index = _manager(True).task_index
    entry = index.get(name)
    if entry is None:
        raise ConfigError(
            f"{key}.task: lm-evaluation-harness {version()} has no task {name!r:.80}"
            f"{did_you_mean(name, index)}; `lm_eval ls tasks` lists all; a file of yours ends in .yaml"
        )
    config: Mapping[str, Any] = entry.cfg or {}
    if entry.kind.name in ("TAG", "GROUP") and "aggregate_metric_list" not in config:
        names = [each if isinstance(each, str) else each.get("task") for each in config.get("task", ())]
        raise ConfigError(
            f"{key}.task: {name} has no score of its own, because it is a list of tasks; name them: "
            f"{', '.join(map(str, sorted(entry.tags) if entry.kind.name == 'TAG' else names))}"
        )
    return config


def _check_config(key: str, spec: BenchmarkSpec, config: Mapping[str, Any]) -> None:
    """Refuse what lm-evaluation-harness would refuse later or ignore."""
    if config.get("unsafe_code"):
        raise ConfigError(
            f"{key}.task: {spec.name} runs code that the model writes, which this project never does"
        )
    if spec.num_fewshot and config.get("num_fewshot") == 0:
        raise ConfigError(f"{key}.num_fewshot: {spec.name} has no solved examples by its definition; remove it")
