"""Configurations that cannot be run: refused by key or line, before any work."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.faults.command_line import CONFIG, CommandLine, ama, experiment

THREE = [{"name": f"t{number}", "source": "synthetic:arithmetic", "limit": 20} for number in range(3)]
BOMB = "a: &a [x, x]\n" + "".join(f"{new}: &{new} [*{old}, *{old}]\n" for old, new in pairwise("abcdefghi"))


def text(name: str, content: str | bytes, *parts: str) -> Any:
    """A file with this content."""
    return pytest.param(content, parts, id=name)


def line(name: str, content: str, *parts: str) -> Any:
    """A valid file with this at its end."""
    return text(name, experiment() + content, *parts)


def keys(name: str, changes: dict[str, Any], *parts: str) -> Any:
    """A valid file with these keys changed."""
    return text(name, experiment(changes), *parts)


FILES = [
    # What is no YAML, or none of ours.
    text("not YAML", "name: [1", "my.yaml cannot be read as YAML", "line 1"),
    text("an empty file", "", "my.yaml: a mapping of keys is needed, not an empty file"),
    text("a list", "- a\n- b\n", "a mapping of keys is needed, not a list"),
    text("a lone word", "quickstart\n", "a mapping of keys is needed, not a single value"),
    text("two documents", experiment() + "---\n" + experiment(), "cannot be read as YAML", "another document"),
    line("tabs for blanks", "split:\n\ttest: 0.1\n", "cannot be read as YAML", "'\\t'", "line "),
    text("not UTF-8", experiment().encode() + b"# caf\xe9\n", "cannot be read as YAML", "utf-8"),
    text("UTF-16", experiment().encode("utf-16"), "cannot be read as YAML", "utf-8"),
    line("NUL", "# \0", "cannot be read as YAML", "#x0000"),
    line("a YAML bomb", BOMB, "aliases are not allowed", "line "),
    line("an anchor used once", "split: &s {test: 0.2}\nother: *s\n", "aliases are not allowed"),
    line("a merge key", "<<: {seed: 3}\n", "a key must be text"),
    line("a Python object", "seed: !!python/object/apply:os.system ['true']\n", "python/object", "not allowed"),
    line("a tag without a value", "seed: !!int ''\n", "the tag", "is not allowed", "line "),
    line("binary text", "split: !!binary aGVsbG8=\n", "the tag", "binary", "is not allowed"),
    line("a duplicate key", "seed: 1\nseed: 2\n", "the key 'seed' appears twice", "line "),
    line("a nested duplicate key", "cluster: {default: {cpu: 1, cpu: 2}}\n", "'cpu' appears twice"),
    line("nested 1,000 deep", "split: " + "[" * 1000 + "]" * 1000 + "\n", "nested too deep"),
    line("a key that is a number", "1: 2\n", "a key must be text", "line "),
    line("a key that is `no`", "no: 2\n", "a key must be text", "line "),
    line("a key that is a list", "? [a, b]\n: 2\n", "a key must be text", "line "),
    line("an octal number", "seed: 0100\n", "'0100': write a number in decimal"),
    line("a sexagesimal number", "seed: 1:30\n", "'1:30': write a number in decimal"),
    line("a number in hexadecimal", f"seed: 0x{'f' * 10_000}\n", "write a number in decimal"),
    line("an impossible date", "seed: 2024-13-01\n", "cannot be read as YAML"),
    line("half a surrogate pair, key", '"\\ud800": 1\n', "'\\ud800'"),
    line("half a surrogate", 'tracking: {experiment: "\\ud800"}\n', "tracking.experiment: ", "'\\ud800'"),
    text("a file of 50 MB", b"#" + b"x" * 50_000_000, "my.yaml cannot be read", "is longer than 1048576 bytes"),
    # Unknown and missing keys.
    keys("an unknown key", {"sed": 1}, "sed: unknown key"),
    keys("an unknown key inside", {"training.betta": 1}, "training.betta: unknown key"),
    keys("an unknown key in a list", {"tasks.1.verfier": "exact"}, "tasks.format.verfier: unknown key"),
    keys(
        "another method's option",
        {"methods.0": {"method": "uniform", "eta": 1}},
        "methods.uniform.eta: unknown",
    ),
    keys(
        "a merge's parameter",
        {"merges.0": {"method": "ties", "parameters": {"densty": 1}}},
        "merges: ties",
        "densty",
    ),
    keys("an unknown stage", {"cluster": {"steps": {"train": {"cpu": 1}}}}, "cluster.steps.train"),
    keys("5,000 unknown keys", {f"key{number}": 1 for number in range(5_000)}, "key0: unknown key", "more"),
    text("missing required keys", "name: a\n", "base_model: Field required", "training: Field required"),
    # Types.
    keys("a word for a number", {"seed": "one"}, "seed: ", "'one'"),
    keys("a truth for a number", {"training.beta": True}, "training.beta: ", "not a boolean"),
    keys("a fraction for a count", {"training.batch_size": 4.5}, "training.batch_size: ", "4.5"),
    keys("a word for a truth", {"evaluation.generate": "yes please"}, "evaluation.generate: ", "'yes please'"),
    keys("a list for a mapping", {"training": [1]}, "training: "),
    keys("a word for a list", {"tasks": "arithmetic"}, "tasks: ", "'arithmetic'"),
    keys("null for a required mapping", {"budget": None}, "budget: "),
    keys("a text of a megabyte for a number", {"seed": "x" * 1_000_000}, "seed: "),
    # Numbers.
    keys("a negative seed", {"seed": -1}, "seed: ", "-1"),
    keys("a seed above 2**31", {"seed": 2**32}, "seed: ", "2147483647"),
    keys("10^12 steps", {"budget.generalist": {"steps": 10**12}}, "budget.generalist.steps: ", "1000000000000"),
    line("10^400", f"seed: 1{'0' * 400}\n", "seed: ", "2147483647"),
    line("10^5000", f"seed: 1{'0' * 5000}\n", "cannot be read as YAML"),
    keys("1e400", {"training.beta": "1e400"}, "training.beta: ", "finite"),
    line("NaN", "specialist_losses: {warn_gap: .nan}\n", "specialist_losses.warn_gap: ", "nan"),
    line("infinity", "specialist_losses: {warn_gap: .inf}\n", "specialist_losses.warn_gap: ", "inf"),
    keys("a share above one", {"tasks.0.label_noise": 1.5}, "tasks.arithmetic.label_noise: ", "1.5"),
    keys("an empty train split", {"split": {"validation": 0.5, "test": 0.5}}, "split: ", "below 1"),
    keys("10^300 epochs", {"budget.specialist": {"epochs": 1e300}}, "budget.specialist.epochs: "),
    keys("a batch of 10^9 pairs", {"training.batch_size": 10**9}, "training.batch_size: ", "1048576"),
    keys("a large tiny model", {"base_model.tiny.hidden_size": 2**20}, "base_model.tiny.hidden_size: ", "4096"),
    keys("max_length above the tiny model's positions", {"max_length": 4096}, "max_length: 256 at most"),
    # Names.
    keys("a name that climbs", {"tasks.0.name": "../x"}, "tasks.0.name: ", "'../x'"),
    keys("a slash", {"methods.0": {"method": "standard", "name": "a/b"}}, "methods.0.name: ", "'a/b'"),
    keys("a name with NUL", {"name": "a\0b"}, "name: ", "'a\\x00b'"),
    keys("a name with a line's end", {"name": "a\n"}, "name: ", "'a\\n'"),
    keys("a name that begins like an option", {"tasks.0.name": "-rf"}, "tasks.0.name: ", "'-rf'"),
    keys("a name of 300 letters", {"name": "x" * 300}, "name: "),
    keys("a name that is a number", {"tasks.0.name": 1}, "tasks.0.name: ", "string"),
    line("a name that is `no`", "registry: {name: no}\n", "registry.name: ", "False"),
    keys("a reserved name", {"methods.0": {"method": "ama-r", "name": "reference"}}, "'reference' is reserved"),
    keys("a task used twice", {"tasks": [THREE[0], dict(THREE[0])]}, "tasks: the name 't0' is used twice"),
    keys("tasks that differ only in case", {"tasks.1.name": "Arithmetic"}, "'Arithmetic' is used twice"),
    keys("a method used twice", {"methods": ["ama-r", "ama-r"]}, "the name 'ama-r' is used twice"),
    keys("a merge named ama-r", {"merges.0": {"method": "ties", "name": "ama-r"}}, "'ama-r' is used twice"),
    # Sources and paths.
    keys("a source with NUL", {"tasks.0": {"name": "a", "source": "a\0.jsonl"}}, "tasks.a.source.path: "),
    keys("a source of two lines", {"base_model": "a\nb"}, "base_model.source: "),
    keys("no source", {"tasks.0": {"name": "a", "source": ""}}, "tasks.a.source.path: "),
    keys("an unknown synthetic task", {"tasks.0.source": "synthetic:chess"}, "unknown synthetic task 'chess'"),
    keys(
        "too many pairs",
        {"tasks.0": {"name": "o", "source": "synthetic:ordering", "limit": 10**6}},
        "'limit'",
        "5040",
    ),
    keys("an s3 URI without bucket", {"tasks.0.source": "s3:///key"}, "s3:///key is not of the form"),
    keys("a missing base model", {"base_model": "./none"}, "base_model.source: ./none does not exist"),
    keys("a missing package", {"base_model": "package:none.such/x.gguf"}, "'none.such'", "is not installed"),
    keys("a base model's long name", {"base_model": "./" + "x" * 900}, "base_model.source: ", "too long"),
    keys("password in URI", {"tracking": {"uri": "https://me:secret@host"}}, "'uri' holds a user or password"),
    # What does not go together.
    keys("an indivisible batch", {"training.micro_batch_size": 3}, "must be a multiple of 'micro_batch_size'"),
    keys(
        "a small batch",
        {"tasks": THREE, "training.batch_size": 2},
        "training.batch_size: ama-r",
        "tasks, 3; it is 2",
    ),
    keys("slerp of three tasks", {"tasks": THREE, "merges": ["slerp"]}, "merges exactly 2 specialists, got 3"),
    keys("an unknown merge", {"merges": ["tise"]}, "merges: tise: unknown merge method 'tise'"),
    keys("an unknown method", {"methods": ["dro"]}, "methods.dro: unknown method 'dro'"),
    keys("a LoRA rank of 0", {"training.lora": {"rank": 0}}, "training.lora.rank: "),
    keys("a huge LoRA rank", {"training.lora": {"rank": 10**6}}, "training.lora.rank: ", "8192"),
    keys("a million processes", {"training.processes": 2**20}, "training.processes: ", "256"),
    keys(
        "two trainables", {"training.lora": {}, "training.trainable": ["x"]}, "'lora' and 'trainable' exclude"
    ),
    keys("a broken `trainable`", {"training.trainable": ["(x"]}, "'trainable': '(x' is no regular expression"),
    keys(
        "two budgets", {"budget.specialist": {"steps": 1, "epochs": 1.0}}, "budget.specialist: give exactly one"
    ),
    keys("a loss of a batch", {"training.loss_type": "aot"}, "training.loss_type: ", "'aot' cannot be mixed"),
    keys("an unknown verifier", {"tasks.0.verifier": "regx"}, "tasks.arithmetic.verifier: "),
    keys("FSDP of one process", {"training.fsdp": True}, "'fsdp' divides a model among 'processes'"),
    keys("no tasks", {"tasks": []}, "tasks: at least one is needed"),
]


@pytest.mark.parametrize(("content", "parts"), FILES)
def test_a_file(cli: CommandLine, content: str | bytes, parts: tuple[str, ...]) -> None:
    cli.configure(content)
    cli.refuses(*parts)


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("/dev/zero", ["/dev/zero cannot be read", "is longer than 1048576 bytes"]),
        ("none.yaml", ["none.yaml cannot be read"]),
        (".", [". cannot be read"]),
        pytest.param("x" * 5000, ["cannot be read", "too long"], id="a name of 5,000 letters"),
        ("link.yaml", ["link.yaml", "cannot be read"]),
        ("quickstart", ["quickstart cannot be read"]),
    ],
)
def test_a_path_without_a_file(cli: CommandLine, path: str, parts: list[str]) -> None:
    (cli.folder / "link.yaml").symlink_to("link.yaml")
    cli.refuses(*parts, arguments=("-c", path))


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--set", "seed"], ["--set seed: must be of the form KEY=VALUE"]),
        (["--set", "methods.9.eta=1"], ["--set methods.9.eta: the configuration has no such key"]),
        (["--set", "name.x=1"], ["--set name.x: the configuration has no such key"]),
        (["--set", "seed=[1"], ["--set seed: '[1' cannot be read as YAML"]),
        (["--set", "training." + "a." * 10_000 + "b=1"], ["training.a: unknown key"]),
        (["--set", "x" * 20_000 + '="'], ["--set xxx", "cannot be read as YAML"]),
        (["--set", "name." + "x" * 20_000 + "=1"], ["--set name.xxx", "the configuration has no such key"]),
        (["--task", "a"], ["--task a: must be of the form"]),
        (["--task", "../a=a.jsonl"], ["tasks.2.name: ", "'../a'"]),
        (["--preset", "quickstart"], ["give one of --preset NAME and --config FILE"]),
        (["--set", "output=file"], ["is not a folder"]),
    ],
    ids=lambda value: value[1][:40] if value[0].startswith("--") and len(value) == 2 else None,
)
def test_options(cli: CommandLine, options: list[str], parts: list[str]) -> None:
    cli.configure(experiment())
    (cli.folder / "file").touch()
    cli.refuses(*parts, arguments=("-c", CONFIG, *options))


@pytest.mark.parametrize(
    ("output", "parts"),
    [
        ("taken", ["--output taken exists and is not an empty folder"]),
        (f"{CONFIG}/out", [f"--output {CONFIG}/out cannot be written to"]),
        pytest.param("x" * 5000, ["--output", "cannot be written to"], id="a name of 5,000 letters"),
    ],
)
def test_a_run_folder(cli: CommandLine, output: str, parts: list[str]) -> None:
    cli.configure(experiment())
    (cli.folder / "taken").mkdir()
    (cli.folder / "taken" / "notes.txt").write_text("mine")
    cli.refuses(*parts, output=output)


def test_a_file_without_permission(cli: CommandLine) -> None:
    cli.configure(experiment())
    cli.accepts()
    (cli.folder / CONFIG).chmod(0)
    cli.unprivileged = True
    cli.refuses(f"{CONFIG} cannot be read", "Permission denied")


def test_an_output_without_permission(cli: CommandLine) -> None:
    cli.configure(experiment({"output": "published/here"}))
    (cli.folder / "published").mkdir()
    cli.accepts()
    (cli.folder / "published").chmod(0o555)
    cli.unprivileged = True
    cli.refuses("published/here cannot be written")


def test_an_unknown_key_in_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text(experiment({"training.betta": 0.2}))
    ended = ama("run", "--config", tmp_path / CONFIG, "--output", tmp_path / "out")
    assert ended.returncode == 2, ended.stderr
    (_, line) = ended.stderr.splitlines()
    assert "training.betta" in line
    assert not (tmp_path / "out").exists()
