"""Check the names of verifiers and row formats in a configuration."""

from automixalign.config.experiment import Experiment
from automixalign.data.row_formats.registry import check_columns
from automixalign.scoring.verifiers.registry import registered_verifiers
from automixalign.system.errors import ConfigError


def check_names(experiment: Experiment) -> None:
    """Refuse a verifier or row format that does not exist, and an option that its format does not have.

    Raises:
        ConfigError: naming the key and what exists.
    """
    for number, task in enumerate(experiment.tasks):
        if task.verifier is not None and task.verifier not in registered_verifiers():
            raise ConfigError(
                f"tasks.{number}.verifier: unknown verifier {task.verifier!r:.80}; "
                f"there are: {', '.join(sorted(registered_verifiers()))}"
            )
        for index, source in enumerate(task.sources):
            try:
                check_columns(source)
            except ConfigError as error:
                raise ConfigError(f"tasks.{number}.sources.{index}: {error}") from error
