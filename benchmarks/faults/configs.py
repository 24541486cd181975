"""Configurations that cannot be run: refused by key or line, before any work."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.faults._refusals import CONFIG, accepted, ama_here, experiment, refused
from benchmarks.faults.case import Case, UnexpectedError, ama

GROUP = "configs"


def _text(name: str, text: str | bytes, *says: str) -> Case:
    """Refuse a file of this content."""

    def run(folder: Path) -> str:
        (folder / CONFIG).write_bytes(text if isinstance(text, bytes) else text.encode())
        return refused(folder, *says)

    return Case(GROUP, name, f"refused: {', '.join(says)}", run)


def _line(name: str, line: str, *says: str) -> Case:
    """Refuse a good file with this at its end."""
    return _text(name, experiment() + line, *says)


def _keys(name: str, changes: dict[str, Any], *says: str) -> Case:
    """Refuse a good file with these keys changed."""
    return _text(name, experiment(changes), *says)


def _options(
    name: str, options: list[str], *says: str, prepare: Callable[[Path], object] | None = None
) -> Case:
    """Refuse a good file with these options behind it."""

    def run(folder: Path) -> str:
        (folder / CONFIG).write_text(experiment())
        if prepare:
            prepare(folder)
        return refused(folder, *says, arguments=("-c", CONFIG, *options))

    return Case(GROUP, name, f"refused: {', '.join(says)}", run)


def _file(name: str, file: str, *says: str, prepare: Callable[[Path], object] | None = None) -> Case:
    """Refuse a file that is no readable one."""

    def run(folder: Path) -> str:
        if prepare:
            prepare(folder)
        return refused(folder, *says, arguments=("-c", file))

    return Case(GROUP, name, f"refused: {', '.join(says)}", run)


def _output(name: str, output: str, *says: str, prepare: Callable[[Path], object] | None = None) -> Case:
    """Refuse a run folder, which only `ama run` is told."""

    def run(folder: Path) -> str:
        (folder / CONFIG).write_text(experiment())
        if prepare:
            prepare(folder)
        before = sorted(folder.rglob("*"))
        try:
            ended = ama_here(folder, "run", "-c", CONFIG, "--no-cache", "--output", output)
        except Exception as error:
            raise UnexpectedError(f"a traceback that ends in {error!r:.200}") from error
        if ended.status != 2 or not all(text in ended.err for text in says):
            raise UnexpectedError(f"status {ended.status}: {ended.err}")
        if sorted(folder.rglob("*")) != before:
            raise UnexpectedError("files were left behind")
        return ended.err.removeprefix("error: ").strip()[:160]

    return Case(GROUP, name, f"refused: {', '.join(says)}", run)


def _unreadable(folder: Path) -> str:
    folder.chmod(0o755)
    (folder / CONFIG).write_text(experiment())
    accepted(folder)
    (folder / CONFIG).chmod(0)
    return refused(folder, f"{CONFIG} cannot be read", "Permission denied", anybody=True)


def _publication_not_writable(folder: Path) -> str:
    folder.chmod(0o755)
    (folder / CONFIG).write_text(experiment({"output": "published/here"}))
    (folder / "published").mkdir()
    accepted(folder)
    (folder / "published").chmod(0o555)
    return refused(folder, "published/here cannot be written", anybody=True)


def _own_process(folder: Path) -> str:
    (folder / CONFIG).write_text(experiment({"training.betta": 0.2}))
    ended = ama("run", "--config", folder / CONFIG, "--output", folder / "out")
    lines = ended.stderr.splitlines()
    if ended.returncode != 2 or len(lines) != 2 or (folder / "out").exists():
        raise UnexpectedError(f"status {ended.returncode}: {ended.stderr}")
    return lines[1]


def _taken(folder: Path) -> None:
    (folder / "taken").mkdir()
    (folder / "taken" / "notes.txt").write_text("mine")


THREE = [{"name": f"t{number}", "source": "synthetic:arithmetic", "limit": 20} for number in range(3)]
BOMB = "a: &a [x, x]\n" + "".join(f"{new}: &{new} [*{old}, *{old}]\n" for old, new in pairwise("abcdefghi"))

CASES: list[Case] = [
    # What is no YAML, or none of ours.
    _text("not YAML", "name: [1", f"{CONFIG} cannot be read as YAML", "line 1"),
    _text("an empty file", "", f"{CONFIG}: a mapping of keys is needed, not NoneType"),
    _text("a list", "- a\n- b\n", "a mapping of keys is needed, not list"),
    _text("a lone word", "quickstart\n", "a mapping of keys is needed, not str"),
    _text("two documents", experiment() + "---\n" + experiment(), "cannot be read as YAML", "another document"),
    _line("tabs for blanks", "split:\n\ttest: 0.1\n", "cannot be read as YAML", "'\\t'", "line "),
    _text("not UTF-8", experiment().encode() + b"# caf\xe9\n", "cannot be read as YAML", "utf-8"),
    _text("UTF-16", experiment().encode("utf-16"), "cannot be read as YAML", "utf-8"),
    _line("NUL", "# \0", "cannot be read as YAML", "#x0000"),
    _line("a YAML bomb", BOMB, "aliases are not allowed", "line "),
    _line("an anchor used once", "split: &s {test: 0.2}\nother: *s\n", "aliases are not allowed"),
    _line("a merge key", "<<: {seed: 3}\n", "a key must be text"),
    _line(
        "a Python object",
        "seed: !!python/object/apply:os.system ['touch ran']\n",
        "python/object",
        "is not allowed",
    ),
    _line("a tag whose value is none", "seed: !!int ''\n", "the tag", "is not allowed", "line "),
    _line("binary text", "split: !!binary aGVsbG8=\n", "the tag", "binary", "is not allowed"),
    _line("a key that stands twice", "seed: 1\nseed: 2\n", "the key 'seed' stands twice", "line "),
    _line(
        "a key that stands twice, deep inside",
        "cluster: {default: {cpu: 1, cpu: 2}}\n",
        "the key 'cpu' stands twice",
    ),
    _line("nested 1,000 deep", "split: " + "[" * 1000 + "]" * 1000 + "\n", "nested too deep"),
    _line("a key that is a number", "1: 2\n", "a key must be text", "line "),
    _line("a key that is `no`", "no: 2\n", "a key must be text", "line "),
    _line("a key that is a list", "? [a, b]\n: 2\n", "a key must be text", "line "),
    _line("an octal number", "seed: 0100\n", "'0100': write a number in decimal"),
    _line("a number to the base of sixty", "seed: 1:30\n", "'1:30': write a number in decimal"),
    _line("a number in hexadecimal", f"seed: 0x{'f' * 10_000}\n", "write a number in decimal"),
    _line("a date that no calendar has", "seed: 2024-13-01\n", "cannot be read as YAML"),
    _line("half a surrogate pair as key", '"\\ud800": 1\n', "'\\ud800'"),
    _line(
        "half a surrogate pair as value",
        'tracking: {experiment: "\\ud800"}\n',
        "tracking.experiment: ",
        "'\\ud800'",
    ),
    _text(
        "a file of 50 MB", b"#" + b"x" * 50_000_000, f"{CONFIG} cannot be read", "longer than a configuration"
    ),
    _file("a file that never ends", "/dev/zero", "/dev/zero cannot be read", "longer than a configuration"),
    _file("no such file", "none.yaml", "none.yaml cannot be read"),
    _file("a folder for a file", ".", ". cannot be read"),
    _file("a name of 5,000 letters", "x" * 5000, "cannot be read as YAML", "too long"),
    _file(
        "a link to itself",
        CONFIG,
        CONFIG,
        "cannot be read",
        prepare=lambda folder: (folder / CONFIG).symlink_to(CONFIG),
    ),
    _file("a preset's name for a file", "quickstart", "quickstart cannot be read"),
    Case(GROUP, "a file that may not be read", "refused: permission denied", _unreadable),
    # Unknown and missing keys.
    _keys("an unknown key", {"sed": 1}, "sed: unknown key"),
    _keys("an unknown key inside", {"training.betta": 1}, "training.betta: unknown key"),
    _keys("an unknown key in a list", {"tasks.1.verfier": "exact"}, "tasks.1.verfier: unknown key"),
    _keys(
        "an option of another method",
        {"methods.0": {"method": "uniform", "eta": 1}},
        "methods.0.eta: unknown key",
    ),
    _keys(
        "a parameter that a merge does not have",
        {"merges.0": {"method": "ties", "parameters": {"densty": 1}}},
        "merges: ties",
        "'densty'",
    ),
    _keys(
        "a step that the DAG does not have",
        {"cluster": {"steps": {"train": {"cpu": 1}}}},
        "cluster.steps.train",
    ),
    _keys("5,000 unknown keys", {f"key{number}": 1 for number in range(5_000)}, "key0: unknown key", "more"),
    _text(
        "a required key that is missing", "name: a\n", "base_model: Field required", "training: Field required"
    ),
    # Types.
    _keys("a word for a number", {"seed": "one"}, "seed: ", "'one'"),
    _keys("a truth for a number", {"training.beta": True}, "training.beta: ", "not a boolean"),
    _keys("a fraction for a count", {"training.batch_size": 4.5}, "training.batch_size: ", "4.5"),
    _keys("a word for a truth", {"evaluation.generate": "yes please"}, "evaluation.generate: ", "'yes please'"),
    _keys("a list for a mapping", {"training": [1]}, "training: "),
    _keys("a word for a list", {"tasks": "arithmetic"}, "tasks: ", "'arithmetic'"),
    _keys("null for a required mapping", {"budget": None}, "budget: "),
    _keys("a text of a megabyte for a number", {"seed": "x" * 1_000_000}, "seed: "),
    # Numbers.
    _keys("a negative seed", {"seed": -1}, "seed: ", "-1"),
    _keys("a seed beyond what the libraries take", {"seed": 2**32}, "seed: ", "2147483647"),
    _keys(
        "10^12 steps", {"budget.generalist": {"steps": 10**12}}, "budget.generalist.steps: ", "1000000000000"
    ),
    _line("10^400", f"seed: 1{'0' * 400}\n", "seed: ", "2147483647"),
    _line("10^5000", f"seed: 1{'0' * 5000}\n", "cannot be read as YAML"),
    _keys("1e400", {"training.beta": "1e400"}, "training.beta: ", "finite"),
    _line("NaN", "specialist_losses: {warn_gap: .nan}\n", "specialist_losses.warn_gap: ", "nan"),
    _line("infinity", "specialist_losses: {warn_gap: .inf}\n", "specialist_losses.warn_gap: ", "inf"),
    _keys("a share above one", {"tasks.0.label_noise": 1.5}, "tasks.0.label_noise: ", "1.5"),
    _keys(
        "shares that leave nothing to train on",
        {"split": {"validation": 0.5, "test": 0.5}},
        "split: ",
        "below 1",
    ),
    _keys("10^300 epochs", {"budget.specialist": {"epochs": 1e300}}, "budget.specialist.epochs: "),
    _keys("a batch of 10^9 pairs", {"training.batch_size": 10**9}, "training.batch_size: ", "1048576"),
    _keys(
        "a tiny model that is not",
        {"base_model.tiny.hidden_size": 2**20},
        "base_model.tiny.hidden_size: ",
        "4096",
    ),
    _keys("max_length above the tiny model's positions", {"max_length": 4096}, "max_length: 256 at most"),
    # Names.
    _keys("a name that climbs", {"tasks.0.name": "../x"}, "tasks.0.name: ", "'../x'"),
    _keys(
        "a name with a slash", {"methods.0": {"method": "standard", "name": "a/b"}}, "methods.0.name: ", "'a/b'"
    ),
    _keys("a name with NUL", {"name": "a\0b"}, "name: ", "'a\\x00b'"),
    _keys("a name with a line's end", {"name": "a\n"}, "name: ", "'a\\n'"),
    _keys("a name that begins like an option", {"tasks.0.name": "-rf"}, "tasks.0.name: ", "'-rf'"),
    _keys("a name of 300 letters", {"name": "x" * 300}, "name: "),
    _keys("a name that is a number", {"tasks.0.name": 1}, "tasks.0.name: ", "string"),
    _line("a name that is `no`", "registry: {name: no}\n", "registry.name: ", "False"),
    _keys(
        "a name of the leaderboard's own",
        {"methods.0": {"method": "standard", "name": "reference"}},
        "'reference' is reserved",
    ),
    _keys("a task used twice", {"tasks": [THREE[0], dict(THREE[0])]}, "tasks: the name 't0' is used twice"),
    _keys(
        "tasks that differ in case alone",
        {"tasks.1.name": "Arithmetic"},
        "tasks: the name 'Arithmetic' is used twice",
    ),
    _keys("a method used twice", {"methods": ["ama-r", "ama-r"]}, "the name 'ama-r' is used twice"),
    _keys(
        "a merge with a method's name",
        {"merges.0": {"method": "ties", "name": "ama-r"}},
        "the name 'ama-r' is used twice",
    ),
    # Sources and places.
    _keys("a source with NUL", {"tasks.0": {"name": "a", "source": "a\0.jsonl"}}, "tasks.0.source: "),
    _keys("a source of two lines", {"base_model": "a\nb"}, "base_model.source: "),
    _keys("no source", {"tasks.0": {"name": "a", "source": ""}}, "tasks.0.source: "),
    _keys(
        "a synthetic task that there is not",
        {"tasks.0.source": "synthetic:chess"},
        "unknown synthetic task 'chess'",
    ),
    _keys(
        "more synthetic pairs than there are",
        {"tasks.0": {"name": "o", "source": "synthetic:ordering", "limit": 10**6}},
        "'limit'",
        "5040",
    ),
    _keys(
        "an s3 URI without bucket",
        {"tasks.0": {"name": "a", "source": "s3:///key"}},
        "s3:///key is not of the form",
    ),
    _keys(
        "a base model that is not there", {"base_model": "./none"}, "base_model.source: ./none does not exist"
    ),
    _keys(
        "a base model's package that is not there",
        {"base_model": "package:none.such/x.gguf"},
        "'none.such'",
        "is not installed",
    ),
    _keys(
        "a base model's name of 5,000 letters",
        {"base_model": "./" + "x" * 900},
        "base_model.source: ",
        "too long",
    ),
    _options(
        "a publication where a file is",
        ["--set", "output=file"],
        "is no folder",
        prepare=lambda folder: (folder / "file").write_text(""),
    ),
    Case(
        GROUP, "a publication that may not be written", "refused: cannot be written", _publication_not_writable
    ),
    _output(
        "a run folder that holds something", "taken", "--output taken holds something already", prepare=_taken
    ),
    _output("a run folder below a file", f"{CONFIG}/out", f"--output {CONFIG}/out cannot be written to"),
    _output("a run folder's name of 5,000 letters", "x" * 5000, "--output", "cannot be written to"),
    _keys(
        "a password in the tracking URI",
        {"tracking": {"uri": "https://me:secret@host"}},
        "tracking: 'uri' holds a user or password",
    ),
    # What does not go together.
    _keys(
        "a batch that does not divide",
        {"training.micro_batch_size": 3},
        "'batch_size' must be a multiple of 'micro_batch_size'",
    ),
    _keys(
        "AMA-R with a batch smaller than the tasks",
        {"tasks": THREE, "training.batch_size": 2},
        "training.batch_size: ama-r",
        "number of tasks, 3; it is 2",
    ),
    _keys(
        "slerp of three tasks",
        {"tasks": THREE, "merges": ["slerp"]},
        "merges: slerp: slerp merges exactly 2 specialists, got 3",
    ),
    _keys("a merge nobody knows", {"merges": ["tise"]}, "merges: tise: unknown merge method 'tise'"),
    _keys("a method nobody knows", {"methods": ["dro"]}, "methods.0: unknown method 'dro'"),
    _keys("a LoRA rank of 0", {"training.lora": {"rank": 0}}, "training.lora.rank: "),
    _keys(
        "a LoRA rank beyond every model's width",
        {"training.lora": {"rank": 10**6}},
        "training.lora.rank: ",
        "8192",
    ),
    _keys(
        "a million processes",
        {"training.batch_size": 2**20, "training.processes": 2**20},
        "training.processes: ",
        "256",
    ),
    _keys(
        "LoRA and `trainable`",
        {"training.lora": {}, "training.trainable": ["x"]},
        "'lora' and 'trainable' exclude",
    ),
    _keys(
        "`trainable` that is no expression",
        {"training.trainable": ["(x"]},
        "'trainable': '(x' is no regular expression",
    ),
    _keys(
        "steps and epochs",
        {"budget.specialist": {"steps": 1, "epochs": 1.0}},
        "budget.specialist: give exactly one",
    ),
    _keys(
        "a loss of a whole batch",
        {"training.loss_type": "aot"},
        "training.loss_type: ",
        "'aot' cannot be mixed",
    ),
    _keys("a verifier nobody knows", {"tasks.0.verifier": "regex"}, "tasks.0.verifier: "),
    _keys("FSDP of one process", {"training.fsdp": True}, "'fsdp' divides a model among 'processes'"),
    _keys("no tasks", {"tasks": []}, "tasks: at least one is needed"),
    # The command line.
    _options("--set without a value", ["--set", "seed"], "--set seed: must be of the form KEY=VALUE"),
    _options(
        "--set of no such place", ["--set", "methods.9.eta=1"], "--set methods.9.eta: there is no such place"
    ),
    _options("--set into a word", ["--set", "name.x=1"], "--set name.x: there is no such place"),
    _options("--set that is no YAML", ["--set", "seed=[1"], "--set seed: '[1' cannot be read as YAML"),
    _options(
        "--set of a path 10,000 deep", ["--set", "training." + "a." * 10_000 + "b=1"], "training.a: unknown key"
    ),
    _options(
        "--set of a key of 20,000 letters",
        ["--set", "x" * 20_000 + '="'],
        "--set xxx",
        "cannot be read as YAML",
    ),
    _options(
        "--set of no such place with a long name",
        ["--set", "name." + "x" * 20_000 + "=1"],
        "--set name.xxx",
        "there is no such place",
    ),
    _options("--task without a source", ["--task", "a"], "--task a: must be of the form"),
    _options("--task with an unsafe name", ["--task", "../a=a.jsonl"], "tasks.2.name: ", "'../a'"),
    _options("a preset and a file", ["--preset", "quickstart"], "give one of --preset NAME and --config FILE"),
    Case(GROUP, "an unknown key, in a process of its own", "refused: two lines, the key", _own_process),
]
