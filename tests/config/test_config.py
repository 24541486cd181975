"""The configuration: what it refuses by which message, and how a plan divides it among the stages."""

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from automixalign.config.data import VerifierSpec
from automixalign.config.experiment import RESERVED, model_names, parse_experiment
from automixalign.config.file import dump_yaml, override, read_yaml, set_task
from automixalign.config.plan import BENCHMARKS, Plan
from automixalign.method.mixers import registered_mixers
from automixalign.preflight.validate import plan
from automixalign.system.errors import ConfigError
from pipelines.cli.options import load_experiment, preset_names
from tests.method.needed_options import needed_options

Data = dict[str, Any]
FINGERPRINTS = {"base_model": "b", "arithmetic": "1", "format": "2", BENCHMARKS: "3"}


def changed(data: Data, changes: Data) -> Data:
    """A copy of `data` with keys in the notation of `--set` changed."""
    data = copy.deepcopy(data)
    for key, value in changes.items():
        override(data, key, value)
    return data


def test_presets_parse() -> None:
    assert preset_names() == ["quickstart", "qwen3-lora", "smollm2", "zephyr-7b", "zephyr-7b-qlora"]
    quickstart = load_experiment("quickstart")
    assert len(quickstart.tasks) >= 2
    assert all(task.source_names == f"synthetic:{task.name}" for task in quickstart.tasks)
    assert {"standard", "uniform", "ama-r", "ama-s"} <= {method.method for method in quickstart.methods}
    preset = load_experiment("smollm2", None, ["helpful=a.jsonl", "harmless=s3://b/c=d"], ["training.beta=0.2"])
    assert [(task.name, task.source_names) for task in preset.tasks] == [
        ("helpful", "a.jsonl"),
        ("harmless", "s3://b/c=d"),
    ]
    assert preset.training.beta == 0.2
    with pytest.raises(ConfigError, match=r"tasks: at least one is needed .*--task"):
        load_experiment("smollm2")


def test_defaults_and_short_forms(experiment_data: Data) -> None:
    experiment_data["base_model"] = "owner/model"
    experiment = parse_experiment(experiment_data, "test")
    assert experiment.base_model.source == "owner/model"
    assert [method.name for method in experiment.methods] == ["standard", "ama-r", "ama-s"]
    assert [method.options for method in experiment.methods] == [{}, {"eta": 0.1}, {}]
    assert experiment.training.beta == 0.1
    assert experiment.split.test == 0.1
    assert model_names(experiment) == [
        "reference",
        "specialist-arithmetic",
        "specialist-format",
        "standard",
        "ama-r",
        "ama-s",
        "linear",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # Unknown keys, wrong types.
        ({"trainning": {}}, r"^trainning: unknown key \(did you mean 'training'\?\)$"),
        ({"methods.1.lr": 1.0}, r"^methods\.ama-r\.lr: unknown key$"),
        ({"seed": 1.0}, r"^seed: .*1\.0"),
        ({"seed": True}, r"^seed: .*True"),
        ({"training": None}, r"^training: .*None"),
        ({"evaluation.generate": 1}, r"^evaluation\.generate: .*bool"),
        ({"evaluation.generate": "yes"}, r"^evaluation\.generate: .*bool"),
        ({"training.precision": "fp16"}, r"^training\.precision: .*'fp32'.*'fp16'"),
        (
            {"training.lr_scheduler": "cosin"},
            r"^training\.lr_scheduler: .*'cosin'; did you mean 'cosine'\?\)",
        ),
        # Numbers.
        ({"training.beta": 0}, r"^training\.beta: .*greater than 0.*0"),
        ({"training.beta": -0.1}, r"^training\.beta: .*greater than 0.*-0\.1"),
        ({"training.beta": math.nan}, r"^training\.beta: .*nan"),
        ({"training.beta": "nan"}, r"^training\.beta: .*nan"),
        ({"training.learning_rate": math.inf}, r"^training\.learning_rate: .*inf"),
        ({"training.learning_rate": "1e-3x"}, r"^training\.learning_rate: .*number.*'1e-3x'"),
        ({"training.batch_size": True}, r"^training\.batch_size: .*True"),
        ({"training.batch_size": "4"}, r"^training\.batch_size: .*integer.*'4'"),
        ({"training.warmup_steps": -1}, r"^training\.warmup_steps: .*-1"),
        ({"methods.1.c": 1.01}, r"^methods\.ama-r\.c: .*1\.01"),
        ({"methods.1.c": -0.01}, r"^methods\.ama-r\.c: .*-0\.01"),
        ({"methods.1.c": False}, r"^methods\.ama-r\.c: .*not a boolean"),
        ({"methods.1.eta": -1}, r"^methods\.ama-r\.eta: .*-1"),
        ({"methods.1.eta": math.nan}, r"^methods\.ama-r\.eta: .*nan"),
        ({"tasks.0.label_noise": 0.6}, r"^tasks\.arithmetic\.label_noise: .*0\.6"),
        ({"tasks.0.limit": 0}, r"^tasks\.arithmetic\.limit: .*0"),
        ({"max_length": 7}, r"^max_length: .*8.*7"),
        (
            {"merges": [{"method": "linear", "parameters": {"weight": True}}]},
            r"^merges\.linear\.parameters\.weight: ",
        ),
        # What excludes or needs something else.
        ({"training.batch_size": 1}, r"^training\.batch_size: ama-r .*number of tasks, 2; it is 1"),
        ({"training.trainable": ["lm_head", "(x"]}, r"^training: 'trainable': '\(x' is no regular expression"),
        ({"training.trainable": []}, r"^training\.trainable: .*at least 1 item"),
        ({"budget.generalist": {}}, r"^budget\.generalist: give exactly one of 'steps' and 'epochs'"),
        ({"budget.generalist.steps": 0}, r"^budget\.generalist\.steps: "),
        ({"split.test": 0}, r"^split\.test: "),
        ({"split.validation": 0, "registry": {"name": "m"}}, r"^registry: .*; set split\.validation above 0$"),
        ({"base_model": {"source": "tiny"}}, r"^base_model: the key 'tiny' goes with 'source: tiny'"),
        ({"base_model": "tiny"}, r"^base_model: the key 'tiny' goes with"),
        ({"base_model.source": "./folder"}, r"^base_model: the key 'tiny' goes with"),
        ({"base_model.source": ""}, r"^base_model\.source: "),
        ({"base_model.tiny.hidden_size": 18}, r"^base_model\.tiny: 'hidden_size' must be a multiple of .* 4$"),
        ({"base_model.tiny.rows_per_task": 10**6}, r"^base_model\.tiny: 'rows_per_task' may be \d+ at most"),
        # Names.
        ({"methods": []}, r"^methods: .*at least 1 item"),
        ({"methods.1.name": "linear"}, r"^methods and merges: the name 'linear' is used twice"),
        (
            {"merges": [{"method": "linear", "weights": {"no-such": 2.0}}]},
            r"^merges: linear: weights: there is no task 'no-such'; there are: ",
        ),
        (
            {"merges": [{"method": "karcher", "weights": {"arithmetic": 2.0}}]},
            r"^merges: karcher: weights: karcher takes no",
        ),
        (
            {"merges": [{"method": "karcher", "weights": "tuned"}]},
            r"^merges: karcher: weights: karcher takes no",
        ),
        (
            {"merges": [{"method": "linear", "weights": "ties"}]},
            r"^merges.linear.weights: Input should be 'tuned' \(it is 'ties'\)$",
        ),
        (
            {"merges": [{"method": "linear", "tries": 3}]},
            r"^merges: linear: 'tries' goes with 'weights: tuned'",
        ),
        (
            {"merges": [{"method": "linear", "weights": "tuned"}], "split.validation": 0.0},
            r"^merges: linear: weights: they are tuned on the validation split; set split.validation above 0",
        ),
        ({"merges": ["ties", "ties"]}, r"^methods and merges: the name 'ties' is used twice"),
        ({"methods.1.name": "reference"}, r"^methods and merges: the name 'reference' is reserved"),
        ({"methods.1.name": "specialist-x"}, r"^methods and merges: the name 'specialist-x' is reserved"),
        (
            {"merges": [{"method": "ties", "name": "Specialist"}]},
            r"^methods and merges: the name 'Specialist' is",
        ),
        (
            {"methods.1.init": "liner"},
            r"^methods.ama-r.init: there is no merge 'liner' \(did you mean 'linear'\?\); 'merges' has: l",
        ),
        # GPUs.
        ({"training.lora": {"quantize": "16bit"}}, r"^training\.lora\.quantize: .*'4bit' or '8bit' .*'8bit'\?"),
        (
            {"training.lora": {"quantize": "4bit"}, "training.fsdp": True, "training.processes": 2},
            r"^training: 'lora\.quantize': 'fsdp' cannot",
        ),
        ({"training.warmup": 0.1, "training.warmup_steps": 2}, r"^training: 'warmup' and .*; remove one"),
        ({"training.warmup": 1.5}, r"^training\.warmup: "),
        ({"training.checkpoint_minutes": -1}, r"^training\.checkpoint_minutes: .*-1"),
        ({"evaluation.processes": 0}, r"^evaluation\.processes: .*0"),
        ({"attn_implementation": "eager"}, r"^attn_implementation: .*'flex_attention' .*'eager'"),
        (
            {"attn_implementation": "flash_attention_2", "evaluation.precision": "fp32"},
            r"^attn_implementation: .*bf16 only; set evaluation\.precision",
        ),
        (
            {"cluster": {"steps": {"evaluate": {"accelerators": 4}}}, "evaluation.processes": 2},
            r"^cluster: evaluate has 4 accelerators for evaluation\.processes: 2",
        ),
        # Methods, merges, synthetic tasks.
        ({"methods.0": "dro"}, r"^methods\.dro: unknown method 'dro'; there are: .*ama-r"),
        ({"methods.0": {"name": "x"}}, r"^methods\.x\.method: .*required"),
        ({"methods.0": {"method": "uniform", "eta": 0.1}}, r"^methods\.uniform\.eta: unknown key$"),
        (
            {"methods": ["ama_r"]},
            r"^methods\.ama_r: unknown method 'ama_r' \(did you mean 'ama-r'\?\); there are: ",
        ),
        (
            {"merges": ["tise"]},
            r"^merges: tise: unknown merge method 'tise' \(did you mean 'ties'\?\); known are .*ties",
        ),
        ({"merges": ["passthrough"]}, r"^merges: passthrough: passthrough cannot merge specialists"),
        (
            {"merges": [{"method": "ties", "parameters": {"densty": 1.0}}]},
            r"^merges: ties: ties has no parameter 'densty' \(did you mean 'density'\?\); it takes .*density",
        ),
        ({"tasks.0.source": "synthetic:formt"}, r"did you mean 'format'"),
        (
            {"tasks.0.source": "synthetic:chess"},
            r"^tasks\.arithmetic: unknown synthetic task 'chess'; .*arithmetic",
        ),
        ({"tasks.0.limit": None}, r"^tasks\.arithmetic: a synthetic task needs 'limit'"),
        (
            {"tasks.0.source": "synthetic:ordering", "tasks.0.limit": 5041},
            r"^tasks\.arithmetic: 'limit': there are only 5040 prompts of 'ordering'",
        ),
    ],
)
def test_refusals_name_their_key(experiment_data: Data, changes: Data, message: str) -> None:
    parse_experiment(experiment_data, "before")
    with pytest.raises(ConfigError) as refusal:
        parse_experiment(changed(experiment_data, changes), "my.yaml")
    first, *lines = str(refusal.value).splitlines()
    assert first == "my.yaml cannot be run:"
    assert any(re.search(message, line) for line in lines), str(refusal.value)


def test_all_faults_are_listed(experiment_data: Data) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_experiment(changed(experiment_data, {"training.beta": 0, "sed": 1, "tasks.0.limit": 0}), "a.yaml")
    assert {line.split(":")[0] for line in str(refusal.value).splitlines()[1:]} == {
        "training.beta",
        "sed",
        "tasks.arithmetic.limit",
    }


@pytest.mark.parametrize("missing", ["name", "base_model", "tasks", "training", "budget", "methods"])
def test_required_keys(experiment_data: Data, missing: str) -> None:
    del experiment_data[missing]
    with pytest.raises(ConfigError, match=rf"(?m)^{missing}: Field required$"):
        parse_experiment(experiment_data, "test")


BAD_NAMES = ["", "../x", "a/b", "a.b", "-a", "_a", "a b", "a\n", "é", ".", "x" * 41]


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("key", ["name", "tasks.0.name", "methods.1.name", "merges.0.name"])
def test_names_that_are_unsafe_file_names(experiment_data: Data, key: str, name: str) -> None:
    experiment_data["merges"] = [{"method": "linear"}]
    with pytest.raises(ConfigError, match=rf"(?m)^{key}: "):
        parse_experiment(changed(experiment_data, {key: name}), "test")


@pytest.mark.parametrize("name", ["a", "A-b_c-9", "0", "x" * 40])
def test_names_that_are_safe_file_names(experiment_data: Data, name: str) -> None:
    changes = {"name": name, "tasks.0.name": name, "methods.1.name": name}
    assert parse_experiment(changed(experiment_data, changes), "test").tasks[0].name == name


@pytest.mark.parametrize("method", sorted(registered_mixers()))
def test_a_batch_holds_every_task_if_the_method_needs_it(experiment_data: Data, method: str) -> None:
    tasks = [task["name"] for task in experiment_data["tasks"]]
    experiment_data["methods"] = [{"method": method, **needed_options(method, tasks)}]
    parse_experiment(experiment_data, "test")
    experiment_data["training"]["batch_size"] = 1
    if registered_mixers()[method].every_task_each_step:
        with pytest.raises(ConfigError, match=f"training.batch_size: {method} "):
            parse_experiment(experiment_data, "test")
    else:
        parse_experiment(experiment_data, "test")


def test_limits_of_ranges_are_accepted(experiment_data: Data) -> None:
    changes = {
        "methods.1.c": 0,
        "methods.1.eta": 0,
        "tasks.0.label_noise": 0.5,
        "training.nll_weight": 0,
        "split.validation": 0,
        "max_length": 8,
        "tasks.0.source": "synthetic:ordering",
        "tasks.0.limit": 5040,
    }
    parse_experiment(changed(experiment_data, changes), "test")
    parse_experiment(changed(experiment_data, {"methods.1.c": 1}), "test")


def test_an_experiment_cannot_be_changed(experiment_data: Data) -> None:
    experiment = parse_experiment(experiment_data, "test")
    with pytest.raises(ValueError, match="frozen"):
        experiment.training.beta = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("preset", preset_names())
def test_a_dump_parses_to_the_same_experiment(preset: str) -> None:
    sets = [
        "training.learning_rate=1.0e-7",
        "seed=3",
        "tasks.0.source={path: a, split: 'yes', where: {b: [1, no]}}",
        "training.nll_weight=1e-12",
    ]
    experiment = load_experiment(preset, None, ["a=./null", "b=12: #é"], sets)
    assert parse_experiment(yaml.safe_load(dump_yaml(experiment)), "dump") == experiment
    assert parse_experiment(json.loads(experiment.model_dump_json()), "json") == experiment


def test_a_dump_of_everything_set(experiment_data: Data) -> None:
    experiment_data |= {
        "split": {"validation": 0, "test": 0.3, "max_train": 9, "max_validation": 1, "max_test": 2},
        "merges": [{"method": "ties", "name": "a", "parameters": {"density": 0.3}}],
        "tracking": {"uri": "http://localhost:5000"},
    }
    experiment_data["training"] |= {"lora": {"target_modules": ["q_proj"]}, "precision": "bf16"}
    experiment = parse_experiment(experiment_data, "test")
    assert parse_experiment(yaml.safe_load(dump_yaml(experiment)), "dump") == experiment


# YAML


def test_yaml_numbers(tmp_path: Path, experiment_data: Data) -> None:
    """YAML 1.1 reads `1e-3` as text; the schema reads it as a number."""
    path = tmp_path / "my.yaml"
    path.write_text("\ufefflearning_rate: 1e-3\nbeta: 1.0e-1\n", encoding="utf-8")
    data = read_yaml(path)
    assert data == {"learning_rate": "1e-3", "beta": 0.1}
    experiment_data["training"] |= data
    training = parse_experiment(experiment_data, "test").training
    assert (training.learning_rate, training.beta) == (0.001, 0.1)


# --set and --task


def test_override(experiment_data: Data) -> None:
    override(experiment_data, "training.beta", 0.5)
    override(experiment_data, "methods.1.eta", 0.7)
    override(experiment_data, "methods.0", "uniform")
    override(experiment_data, "split.max_train", 7)
    experiment = parse_experiment(experiment_data, "test")
    assert experiment.training.beta == 0.5
    assert experiment.methods[1].eta == 0.7
    assert experiment.methods[0].method == "uniform"
    assert experiment.split.max_train == 7


def test_override_by_name(experiment_data: Data) -> None:
    """A bare name becomes a mapping, as in the schema."""
    override(experiment_data, "tasks.format.limit", 7)
    override(experiment_data, "methods.ama-s.eta", 0.7)
    override(experiment_data, "merges.linear.parameters.weight", 0.5)
    override(experiment_data, "base_model", "owner/model")
    override(experiment_data, "base_model.revision", "main")
    override(experiment_data, "tasks.format.source.limit", 6)
    experiment = parse_experiment(experiment_data, "test")
    assert (experiment.tasks[1].limit, experiment.tasks[1].sources[0].limit) == (7, 6)
    assert experiment.methods[2].options == {"eta": 0.7}
    assert experiment.merges[0].parameters == {"weight": 0.5}
    assert experiment.base_model.revision == "main"


def test_a_name_that_is_a_number_comes_before_an_index(experiment_data: Data) -> None:
    experiment_data["tasks"][0]["name"] = "1"
    override(experiment_data, "tasks.1.limit", 7)
    override(experiment_data, "tasks.0.limit", 8)
    assert [task["limit"] for task in experiment_data["tasks"]] == [8, 20]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("methods.ama_r.eta", r"no such key \(did you mean 'ama-r'\?\); methods holds: standard, ama-r, ama-s"),
        ("tasks.9.limit", "no such key; tasks holds: arithmetic, format"),
        ("methods.twice.eta", "methods has 2 entries 'twice'; use an index from 0"),
    ],
)
def test_override_of_an_element_that_does_not_exist(experiment_data: Data, key: str, message: str) -> None:
    if "twice" in key:
        experiment_data["methods"] = [
            {"method": "ama-r", "name": "twice"},
            {"method": "ama-s", "name": "twice"},
        ]
    with pytest.raises(ConfigError, match=message):
        override(experiment_data, key, 1)


@pytest.mark.parametrize(
    "key", ["methods.9.eta", "methods.x.eta", "methods.9", "methods.x", "name.x", "seed.x.y"]
)
def test_override_of_a_key_that_does_not_exist(experiment_data: Data, key: str) -> None:
    experiment_data["seed"] = None
    with pytest.raises(ConfigError, match=f"--set {key}: the configuration has no such key"):
        override(experiment_data, key, 1)


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("trainin.beta", r"trainin: unknown key \(did you mean 'training'\?\)"),
        ("max_lenght", r"max_lenght: unknown key \(did you mean 'max_length'\?\)"),
        ("beta", r"beta: unknown key \(did you mean 'training\.beta'\?\)"),
        ("methods.ama-r.etta", r"methods\.ama-r\.etta: unknown key \(did you mean 'eta'\?\)"),
        ("tasks.format.sorce", r"tasks\.format\.sorce: unknown key \(did you mean 'source'\?\)"),
        ("tasks.format.source.splt", r"tasks\.format\.source\.splt: unknown key \(did you mean 'split'\?\)"),
        (
            "merges.linear.weight",
            r"merges\.linear\.weight: unknown key \(did you mean 'parameters\.weight'\?\)",
        ),
        ("training.beta.x.y", "training.beta: .*"),
        ("a.b.c", "a: unknown key"),
        (".", "unknown key"),
        ("training.", "training.: unknown key"),
        ("methods.standard.eta", r"methods\.standard\.eta: unknown key"),
    ],
)
def test_the_schema_refuses_a_key_that_an_override_adds(experiment_data: Data, key: str, line: str) -> None:
    override(experiment_data, key, 1)
    with pytest.raises(ConfigError, match=f"(?m)^{line}$"):
        parse_experiment(experiment_data, "test")


def test_set_task(experiment_data: Data) -> None:
    set_task(experiment_data, "format", "a.jsonl")
    set_task(experiment_data, "new", "b.jsonl")
    experiment = parse_experiment(experiment_data, "test")
    assert [(task.name, task.source_names) for task in experiment.tasks] == [
        ("arithmetic", "synthetic:arithmetic"),
        ("format", "a.jsonl"),
        ("new", "b.jsonl"),
    ]
    assert experiment.tasks[1].limit == 20


@pytest.mark.parametrize("tasks", [None, []])
def test_set_task_without_tasks(experiment_data: Data, tasks: list[Any] | None) -> None:
    experiment_data["tasks"] = tasks
    set_task(experiment_data, "new", "b.jsonl")
    assert [task.name for task in parse_experiment(experiment_data, "test").tasks] == ["new"]


def test_set_task_without_a_list(experiment_data: Data) -> None:
    with pytest.raises(ConfigError, match="--task new: 'tasks' is not a list"):
        set_task(experiment_data | {"tasks": {"name": "a"}}, "new", "b.jsonl")
    experiment_data["tasks"].append("nonsense")
    set_task(experiment_data, "new", "b.jsonl")
    with pytest.raises(ConfigError, match=r"(?m)^tasks\.nonsense: .*'nonsense'"):
        parse_experiment(experiment_data, "test")


# The plan


def settings_of(data: Data, **fingerprints: str) -> dict[str, Any]:
    """The settings of every stage; each item of a loop has a key of its own."""
    settings = {}
    for key, value in Plan.of(parse_experiment(data, "test"), FINGERPRINTS | fingerprints):
        if isinstance(value, list):
            settings |= {f"{key}.{number}": item for number, item in enumerate(value)}
        elif value is not None:
            settings[key] = value
    return settings


def difference(one: Data, other: Data) -> set[str]:
    return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}


STAGES = {
    "base_model",
    "data",
    "scoring",
    "specialist",
    "specialist_losses",
    "generalists.0",
    "generalists.1",
    "generalists.2",
    "merges.0",
    "evaluation",
    "benchmarks",
    "comparison",
    "registry",
    "publication",
}
LOSSES = {"specialist", "specialist_losses"}
GENERALISTS = {"generalists.0", "generalists.1", "generalists.2"}
ATTENDING = {"scoring", *LOSSES, *GENERALISTS, "evaluation", "comparison"}


@pytest.fixture
def complete_data(experiment_data: Data) -> Data:
    """A configuration whose DAG has every stage."""
    release = {"registry": {"name": "assistant"}, "output": "s3://bucket/prefix"}
    return experiment_data | release | {"benchmarks": ["toxigen"]}


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({"seed": 1}, STAGES),
        ({"methods.1.eta": 0.2}, {"generalists.1", "comparison"}),
        ({"methods.1.name": "other"}, {"generalists.1", "comparison"}),
        ({"training.beta": 0.2}, {*LOSSES, *GENERALISTS, "evaluation", "comparison"}),
        ({"training.loss_type": "ipo"}, {*LOSSES, *GENERALISTS, "evaluation", "comparison"}),
        ({"specialist_losses.cross_fit": True}, {"specialist", "specialist_losses", "comparison"}),
        ({"training.learning_rate": 0.1}, {"specialist", *GENERALISTS, "comparison"}),
        ({"budget.specialist.steps": 9}, {"specialist", "specialist_losses", "comparison"}),
        ({"budget.generalist.steps": 9}, {*GENERALISTS, "comparison"}),
        ({"merges.0": "ties"}, {"merges.0", "comparison"}),
        ({"evaluation.max_new_tokens": 9}, {"evaluation", "comparison"}),
        (
            {"evaluation.precision": "bf16"},
            {"scoring", "specialist", "specialist_losses", "evaluation", "benchmarks", "comparison"},
        ),
        ({"benchmarks.0": "gsm8k"}, {"benchmarks", "comparison"}),
        ({"tasks.0.limit": 10}, {"data", "comparison"}),
        # The others read the data, which then differ.
        ({"max_length": 32}, {"data", *ATTENDING}),
        ({"attn_implementation": "sdpa"}, ATTENDING),
        ({"split.test": 0.2}, {"data", "comparison"}),
        ({"base_model.tiny.steps": 9}, {"base_model", "comparison"}),
        ({"name": "other"}, {"comparison"}),
    ],
)
def test_a_change_reaches_only_its_stages(complete_data: Data, changes: Data, stages: set[str]) -> None:
    """The settings of three stages, comparison, registry and publication, name the whole experiment."""
    before = settings_of(complete_data)
    assert before.keys() == STAGES | {"tasks.0", "tasks.1"}
    after = settings_of(changed(complete_data, changes))
    assert difference(before, after) == stages | {"registry", "publication"}


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({"tracking.uri": "http://x"}, set()),
        ({"cluster": {"default": {"cpu": 4}}}, set()),
        ({"registry.beat_champion": False}, {"registry"}),
        ({"output": "s3://b/p"}, {"publication"}),
    ],
)
def test_where_results_go_changes_no_result(complete_data: Data, changes: Data, stages: set[str]) -> None:
    before = settings_of(complete_data)
    assert difference(before, settings_of(changed(complete_data, changes))) == stages


def test_an_experiment_without_optional_parts_has_no_such_stages(experiment_data: Data) -> None:
    optional = {"benchmarks", "registry", "publication"}
    assert settings_of(experiment_data).keys() == STAGES - optional | {"tasks.0", "tasks.1"}
    outputs = Plan.of(parse_experiment(experiment_data, "test"), FINGERPRINTS).as_outputs()
    assert (outputs["registry"], outputs["publication"]) == ("", "")


@pytest.mark.parametrize(
    ("source", "stage"), [("format", "data"), ("base_model", "base_model"), (BENCHMARKS, "benchmarks")]
)
def test_a_fingerprint_reaches_the_stage_that_reads_the_source(
    complete_data: Data, source: str, stage: str
) -> None:
    before = settings_of(complete_data)
    assert difference(before, settings_of(complete_data, **{source: "changed"})) == {stage}


def test_new_code_never_meets_an_old_cache(complete_data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    before = settings_of(complete_data)
    monkeypatch.setattr("automixalign.config.plan.code_digest", lambda modules: "another")
    assert difference(before, settings_of(complete_data)) == STAGES


def test_cross_fitting_trains_each_half_in_half_the_steps(experiment_data: Data) -> None:
    assert Plan.of(parse_experiment(experiment_data, "test"), FINGERPRINTS).specialist_losses.fold is None
    changes = {"specialist_losses": {"cross_fit": True}, "budget.specialist": {"steps": 5}}
    stages = Plan.of(parse_experiment(changed(experiment_data, changes), "test"), FINGERPRINTS)
    assert stages.specialist_losses.fold is not None
    assert stages.specialist_losses.fold.budget.steps == 3
    changes["budget.specialist"] = {"epochs": 2.0}
    stages = Plan.of(parse_experiment(changed(experiment_data, changes), "test"), FINGERPRINTS)
    assert stages.specialist_losses.fold == stages.specialist


def test_the_plan_holds_what_the_stages_need(experiment_data: Data) -> None:
    stages = Plan.of(parse_experiment(experiment_data, "test"), FINGERPRINTS)
    assert stages.tasks == ["arithmetic", "format"]
    assert stages.data.fingerprints == ["1", "2"]
    assert stages.base_model.synthetic_tasks == ["arithmetic", "format"]
    assert stages.evaluation.verifiers == {"arithmetic": VerifierSpec(name="exact")}
    assert [settings.name for settings in stages.generalists] == ["standard", "ama-r", "ama-s"]
    assert [settings.name for settings in stages.merges] == ["linear"]


def test_the_plan_survives_a_round_trip_as_text(complete_data: Data) -> None:
    stages = Plan.of(parse_experiment(complete_data, "test"), FINGERPRINTS)
    outputs = stages.as_outputs()

    def parse(key: str, text: Any) -> Any:
        return text if key == "tasks" else json.loads(text)

    restored = {
        key: [parse(key, item) for item in text] if isinstance(text, list) else parse(key, text)
        for key, text in outputs.items()
    }
    assert Plan.model_validate(restored) == stages


def test_plan_reads_json_and_yaml(experiment_data: Data) -> None:
    experiment = parse_experiment(experiment_data, "test")
    texts = (json.dumps(experiment_data), yaml.safe_dump(experiment_data), dump_yaml(experiment))
    plans = [plan(text, experiment.parts) for text in texts]
    assert plans[0] == plans[1] == plans[2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "must be a mapping of keys, not list"),
        ("{", "the configuration cannot be read as YAML"),
        ('{"seed": 1, "seed": 2}', "the key 'seed' appears twice"),
        ("a: &a [x]\nb: [*a, *a]", "aliases are not allowed"),
        ('{"seed": 1}', "(?m)^name: Field required"),
    ],
)
def test_plan_refuses(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(text, [])


def test_plan_checks_the_sources(experiment_data: Data, tmp_path: Path) -> None:
    from automixalign.system.errors import DataError, ModelError

    parts = parse_experiment(experiment_data, "test").parts
    source = tmp_path / "task.jsonl"
    set_task(experiment_data, "format", str(source))
    with pytest.raises(DataError, match=rf"task format: {source} does not exist"):
        plan(json.dumps(experiment_data), parts)
    source.write_text("one")
    before = plan(json.dumps(experiment_data), parts)
    source.write_text("two")
    after = plan(json.dumps(experiment_data), parts)
    assert before.data != after.data
    assert before.model_copy(update={"data": after.data}) == after
    experiment_data["base_model"] = str(tmp_path / "no-model")
    with pytest.raises(ModelError, match="no-model does not exist"):
        plan(json.dumps(experiment_data), parts)


def test_reserved_names_are_those_of_the_leaderboard(experiment_data: Data) -> None:
    names = model_names(parse_experiment(experiment_data, "test"))
    reserved = [name for name in names if name.split("-")[0] in RESERVED]
    assert reserved == ["reference", "specialist-arithmetic", "specialist-format"]


def test_a_misspelt_key_stands_for_the_missing_one(experiment_data: Data) -> None:
    experiment_data["tasks"][0] = {"name": "arithmetic", "sorce": "a.jsonl"}
    experiment_data["mehtods"] = experiment_data.pop("methods")
    with pytest.raises(ConfigError) as error:
        parse_experiment(experiment_data, "test")
    assert str(error.value).splitlines()[1:] == [
        "tasks.arithmetic.sorce: unknown key (did you mean 'source'?)",
        "mehtods: unknown key (did you mean 'methods'?)",
    ]


def test_another_key_comes_before_the_missing_one(experiment_data: Data) -> None:
    experiment_data["tasks"][0] = {"name": "arithmetic", "file": "a.jsonl"}
    with pytest.raises(ConfigError) as error:
        parse_experiment(experiment_data, "test")
    assert str(error.value).splitlines()[1:] == [
        "tasks.arithmetic.file: unknown key",
        "tasks.arithmetic.sources: Field required",
    ]
