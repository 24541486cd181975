"""Check the names of verifiers and row formats in a configuration."""

from automixalign.config.experiment import Experiment
from automixalign.data.row_formats.registry import check_columns
from automixalign.scoring.verifiers.registry import registered_verifiers
from automixalign.system.errors import ConfigError
from automixalign.system.schema import did_you_mean


def check_names(experiment: Experiment) -> None:
    """Refuse a verifier or row format that does not exist, and an option that its format does not have.

    Raises:
        ConfigError: naming the key and what exists.
    """
    for task in experiment.tasks:
        if task.verifier is not None and task.verifier not in registered_verifiers():
            raise ConfigError(
                f"tasks.{task.name}.verifier: unknown verifier {task.verifier!r:.80}"
                f"{did_you_mean(task.verifier, registered_verifiers())}; "
                f"there are: {', '.join(sorted(registered_verifiers()))}"
            )
        for index, source in enumerate(task.sources):
            try:
                check_columns(source)
            except ConfigError as error:
                key = "source" if len(task.sources) == 1 else f"sources.{index}"
                raise ConfigError(f"tasks.{task.name}.{key}: {error}") from error
