"""A training as a job: its inputs and outputs."""

from abc import abstractmethod
from pathlib import Path
from typing import Any

from automixalign.config.training import TrainingSettings
from automixalign.steps.jobs.job import Job


class Training(Job):
    """What a training reads and writes. Its result holds its facts: steps, pairs, seconds, ..."""

    settings: TrainingSettings
    data: Path
    reference_logps: Path
    base_model: Path
    output: Path
    """The model's folder."""
    trajectory: Path
    """JSONL file with a line for each optimiser step."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The model's name in the leaderboard."""

    @property
    def start_model(self) -> Path:
        """The full model whose weights the policy has before the first step: here the reference model."""
        return self.base_model

    def options(self) -> dict[str, Any]:
        """The settings of this training, by their names in a configuration (`beta`, `lora.rank`)."""
        settings = self.settings
        options = settings.training.model_dump(mode="json", exclude_none=True)
        learning_rate = settings.budget.learning_rate or settings.training.learning_rate
        return {**options, "learning_rate": learning_rate, "seed": settings.seed}

    def finish(self) -> None:
        """Add what needs the written model; the first machine calls this after the training."""
