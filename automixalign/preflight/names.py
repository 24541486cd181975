"""Check the names of verifiers and row formats in a configuration."""

from automixalign.config.experiment import Experiment
from automixalign.data.row_formats.registry import check_columns
from automixalign.scoring.verifiers.registry import make_verifier
from automixalign.system.errors import ConfigError


def check_names(experiment: Experiment) -> None:
    """Refuse a verifier or row format that does not exist, and an option that it does not have.

    Raises:
        ConfigError: naming the key and what exists.
    """
    for task in experiment.tasks:
        if task.verifier is not None:
            try:
                make_verifier(task.verifier)
            except ConfigError as error:
                raise ConfigError(f"tasks.{task.name}.verifier: {error}") from error
        for index, source in enumerate(task.sources):
            try:
                check_columns(source)
            except ConfigError as error:
                key = "source" if len(task.sources) == 1 else f"sources.{index}"
                raise ConfigError(f"tasks.{task.name}.{key}: {error}") from error
