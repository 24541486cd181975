"""The models in a run folder, by name."""

from pathlib import Path

from automixalign.models.safety import check_model_folder
from automixalign.report import leaderboard, run_folder
from automixalign.storage import files
from automixalign.system.errors import ConfigError

MODELS, REGISTRATION = "models", "registration.json"
REFERENCE = "reference"


def model_names(run: Path) -> list[str]:
    """The models that a run has made so far, adapters too.

    Raises:
        ConfigError: `run` is not a run folder.
    """
    if not (run / run_folder.CONFIG).is_file():
        raise ConfigError(f"{run} is not a run folder: there is no {run_folder.CONFIG}")
    folder = run / MODELS
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def model_folder(run: Path, name: str) -> Path:
    """The folder of a model of a run.

    Raises:
        ConfigError: the run has no such model; the message lists those that there are.
        ModelError: it holds no weights in safetensors.
    """
    names = model_names(run)
    if name not in names:
        raise ConfigError(f"{run} has no model {name!r}; there are: {', '.join(names) or 'none yet'}")
    folder = run / MODELS / name
    check_model_folder(folder)
    return folder


def reference_folder(run: Path) -> Path:
    """The folder of the reference model, which is the base of the run's adapters."""
    return model_folder(run, REFERENCE)


def best_model(run: Path) -> str:
    """The name of the model that the run registered or chose; of the best in its leaderboard if it chose none.

    Raises:
        ConfigError: the run has no leaderboard yet.
    """
    names = model_names(run)
    if (run / REGISTRATION).is_file():
        return str(files.read_json(run / REGISTRATION)["model"])
    board = run / run_folder.LEADERBOARD
    if board.is_file():
        entries = files.read_json(board)
        chosen = leaderboard.chosen(entries)
        name = leaderboard.best(entries, "worst", leaderboard.RANKED_BY) if chosen is None else chosen["model"]
        if name is not None:
            return str(name)
    raise ConfigError(
        f"{run} has no leaderboard yet: name a model; there are: {', '.join(names) or 'none yet'}"
    )
