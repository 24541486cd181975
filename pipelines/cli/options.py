"""Options that several commands share, and the experiment that they describe."""

import itertools
import shlex
import sys
import time
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from automixalign.system.errors import ConfigError

if TYPE_CHECKING:
    from automixalign.config.experiment import Experiment

PRESETS = resources.files("pipelines") / "presets"


def preset_names() -> list[str]:
    """The names of the configurations that come with the project."""
    return sorted(Path(entry.name).stem for entry in PRESETS.iterdir() if entry.name.endswith(".yaml"))


def complete_preset(incomplete: str) -> list[str]:
    """The presets that begin so, for the shell."""
    return [name for name in preset_names() if name.startswith(incomplete)]


def complete_run(incomplete: str) -> list[str]:
    """The run folders below `runs` that begin so, for the shell."""
    folders = (path.parent for path in Path("runs").glob("*/.kfp"))
    return sorted(folder for folder in map(str, folders) if folder.startswith(incomplete))


Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        "-p",
        help="A configuration that comes with the project (`ama presets`).",
        metavar="NAME",
        autocompletion=complete_preset,
    ),
]
Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="Your own configuration (YAML).", metavar="FILE")
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        "-t",
        metavar="NAME=PATH",
        help="Add a task, or change the data of one: JSONL, Parquet, folder, s3:// or hub id. Repeatable.",
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="KEY=VALUE",
        help="Change a key: `training.beta=0.2`; an entry of a list by its name or number: "
        "`methods.ama-r.eta=0.1` or `methods.3.eta=0.1` (the first is 0). Repeatable.",
    ),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.", autocompletion=complete_run)]
NoCache = Annotated[
    bool, typer.Option("--no-cache", help="Reuse no results of other runs; same as --set cluster.cache=false.")
]


def load_experiment(
    preset: str | None = None,
    file: Path | None = None,
    tasks: list[str] | None = None,
    sets: list[str] | None = None,
    no_cache: bool = False,
) -> "Experiment":
    """The checked experiment that the options describe.

    Raises:
        ConfigError: an option or the configuration is invalid.
    """
    from automixalign.config.experiment import parse_experiment
    from automixalign.config.file import override, parse_yaml, read_yaml, resolve_paths, set_task
    from automixalign.preflight.names import check_names

    if preset is not None and file is None:
        path, source = preset_path(preset, "--preset "), f"--preset {preset}"
    elif file is not None and preset is None:
        path, source = file, str(file)
    else:
        raise ConfigError(f"give one of --preset NAME and --config FILE; presets: {', '.join(preset_names())}")
    data = read_yaml(path)
    # A pipe has no folder.
    resolve_paths(data, file.parent if file is not None and file.is_file() else Path())
    for option in tasks or []:
        name, task_source = key_value("--task", option)
        set_task(data, name, task_source)
    for option in [*(sets or []), *(["cluster.cache=false"] if no_cache else [])]:
        key, text = key_value("--set", option)
        override(data, key, parse_yaml(text, f"--set {key:.80}: {text!r:.80}"))
    resolve_paths(data, Path())
    experiment = parse_experiment(data, source)
    check_names(experiment)
    return experiment


def preset_path(name: str, option: str = "") -> Path:
    """The file of a preset; `option` comes before its name in the message.

    Raises:
        ConfigError: there is no such preset.
    """
    from automixalign.system.schema import did_you_mean

    if name not in preset_names():
        raise ConfigError(
            f"{option}{name}: there is no such preset{did_you_mean(name, preset_names())}; "
            f"there are: {', '.join(preset_names())}"
        )
    return Path(str(PRESETS / f"{name}.yaml"))


def timestamped_name(experiment: "Experiment") -> str:
    """`quickstart-20250101-120000`."""
    return f"{experiment.name}-{time.strftime('%Y%m%d-%H%M%S')}"


def new_run_folder(experiment: "Experiment") -> Path:
    """Make `runs/quickstart-20250101-120000`, or the first of `...-2`, `...-3` that does not exist.

    Raises:
        ConfigError: the working directory cannot be written to.
    """
    name = timestamped_name(experiment)
    try:
        for number in itertools.count(1):
            folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
            folder.parent.mkdir(exist_ok=True)
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            break
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made: {error.strerror}; name a folder by --output") from error
    return folder


def repeated_command(*options: str) -> str:
    """The command line that the user gave, with these further options."""
    return shlex.join(["ama", *sys.argv[1:], *options])


def warn_about_tag() -> None:
    """Warn if the name of the container image is a tag and not a digest."""
    from components.image import IMAGE, is_pinned

    if not is_pinned(IMAGE):
        message = (
            f"the image {IMAGE} is named by a tag, which can change during a run: name it by digest "
            "(AMA_IMAGE=registry/name@sha256:...)"
        )
        Console(stderr=True).print(Text.assemble(("warning:", "yellow"), f" {message}"), soft_wrap=True)


def key_value(option: str, text: str, form: str = "KEY=VALUE") -> tuple[str, str]:
    """The two parts of `KEY=VALUE`, or of another form, which the message names.

    Raises:
        ConfigError: it has no such form; the message names the option.
    """
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise ConfigError(f"{option} {text:.80}: must be of the form {form}")
    return key, value
