"""`ama compile`."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from automixalign.system.errors import ConfigError
from automixalign.system.plain_text import byte_size
from pipelines.cli.options import Config, Preset, Sets, Tasks, load_experiment, warn_about_tag

if TYPE_CHECKING:
    from automixalign.config.experiment import Experiment


def compile_pipeline(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE.yaml", help="File of the compiled pipeline.")
    ] = None,
    preset: Preset = None,
    file: Config = None,
    task: Tasks = None,
    set_: Sets = None,
    with_bytes: Annotated[
        bool, typer.Option("--bytes", help="Print how many copies of models each stage's pods transfer.")
    ] = False,
) -> None:
    """Compile an experiment's pipeline to KFP's IR YAML, for an upload to Kubeflow Pipelines.

    Its one parameter, `config`, has the experiment as its default. The configuration's key `cluster` sets the
    resources of each stage; the environment variable AMA_IMAGE names the container image.

    Example:

        AMA_IMAGE=registry/automixalign@sha256:... ama compile --config my.yaml --output my-pipeline.yaml
        ama compile --config my.yaml --bytes
    """
    from pipelines.dag.compiling import write_pipeline

    if output is None and not with_bytes:
        raise ConfigError("give --output FILE.yaml, or --bytes")
    if output is not None and output.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--output {output}: the name must end in .yaml")
    experiment = load_experiment(preset, file, task, set_)
    if with_bytes:
        _show_transfers(experiment)
    if output is None:
        return
    try:
        write_pipeline(experiment, output)
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be written: {error}") from error
    warn_about_tag()


def _show_transfers(experiment: "Experiment") -> None:
    """Print the models, and the adapters if there are any, that the pods transfer."""
    from automixalign.models.inspect import is_at_hand, read_outline
    from pipelines.dag.transfers import transfers_of

    rows = transfers_of(experiment)
    kinds = ("models", "adapters") if any(each.uploads.adapters for each in rows) else ("models",)
    columns = [(way, kind) for way in ("downloads", "uploads") for kind in kinds]
    totals = {(way, kind): sum(getattr(getattr(each, way), kind) for each in rows) for way, kind in columns}
    table = Table(box=SIMPLE_HEAD, header_style="", footer_style="", show_footer=True)
    table.add_column("stage", footer="all")
    table.add_column("pods", justify="right", footer=f"{sum(each.runs for each in rows):,}")
    for way, kind in columns:
        table.add_column(f"{kind} {way[:-1]}ed", justify="right", footer=f"{totals[way, kind]:,}")
    for each in rows:
        counts = [getattr(getattr(each, way), kind) for way, kind in columns]
        table.add_row(each.title, f"{each.runs:,}", *(f"{count:,}" for count in counts))
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(table)
    if is_at_hand(experiment.base_model):
        with tempfile.TemporaryDirectory() as scratch:
            size = read_outline(experiment.base_model, Path(scratch)).bytes
        sums = [f"{byte_size(size * totals[way, 'models'])} {way[:-1]}ed" for way in ("downloads", "uploads")]
        console.print(f"a model has {byte_size(size)}; all models: {', '.join(sums)}")
