"""Check the names of verifiers in a configuration."""

from automixalign.config.experiment import Experiment
from automixalign.scoring.verifiers.registry import registered_verifiers
from automixalign.system.errors import ConfigError


def check_verifiers(experiment: Experiment) -> None:
    """Refuse a task whose verifier does not exist.

    Raises:
        ConfigError: naming the key and the verifiers that exist.
    """
    for number, task in enumerate(experiment.tasks):
        if task.verifier is not None and task.verifier not in registered_verifiers():
            raise ConfigError(
                f"tasks.{number}.verifier: unknown verifier {task.verifier!r:.80}; "
                f"there are: {', '.join(sorted(registered_verifiers()))}"
            )
