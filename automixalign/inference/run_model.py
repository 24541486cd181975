"""A model of a run, loaded to answer as `evaluate` lets it answer."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from automixalign.config.experiment import parse_experiment
from automixalign.config.file import read_yaml
from automixalign.data.pairs import Options, Turn
from automixalign.data.store import TEST, split_path
from automixalign.data.tokens import prompt_ids
from automixalign.models.generate import Answer, Decoding, Track, all_at_once, generate
from automixalign.models.load import load_model, load_tokenizer
from automixalign.models.prepare import transformers_silenced
from automixalign.report import run_folder
from automixalign.report.run_models import model_folder, reference_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class RunModel:
    """A model of a run. It is loaded when it first answers.

    Args:
        run: the run folder.
        name: one of `run_models.model_names`.

    Raises:
        ConfigError: `run` is not a run folder, or has no such model.
        ModelError: the model is incomplete.
    """

    def __init__(self, run: Path, name: str) -> None:
        self.name, self._run = name, run
        self._folder, self._reference = model_folder(run, name), reference_folder(run)
        path = run / run_folder.CONFIG
        self._experiment = parse_experiment(read_yaml(path), str(path))
        self.tokenizer = load_tokenizer(self._reference)

    def decoding(
        self, temperature: float = 0.0, max_new_tokens: int | None = None, batch_size: int | None = None
    ) -> Decoding:
        """How to generate; what is not given is as in the run's evaluation."""
        spec = self._experiment.evaluation
        return Decoding(
            max_new_tokens or spec.max_new_tokens, batch_size or spec.batch_size, spec.precision, temperature
        )

    @property
    def speaks(self) -> bool:
        """Whether a prompt of text is the message of a user: there is a chat template, and the data use it."""
        if self.tokenizer.chat_template is None:
            return False
        files = [split_path(self._run / "data", task.name, TEST) for task in self._experiment.tasks]
        kinds = [pq.read_schema(file).field("prompt").type for file in files if file.is_file()]
        return not kinds or any(kind != pa.string() for kind in kinds)

    def ids(self, prompt: Turn, options: Options | None = None) -> list[int]:
        """The token ids of a prompt, as of those that are evaluated.

        Raises:
            ModelError: there is no chat template for messages.
            DataError: the chat template refuses the messages.
        """
        return prompt_ids(self.tokenizer, prompt, options, self._experiment.date)

    def answers(
        self, prompts: Sequence[Sequence[int]], decoding: Decoding, track: Track = all_at_once
    ) -> list[Answer]:
        """Answer prompts, which `ids` has made; for the arguments see `generate`.

        Raises:
            ModelError: a prompt leaves no room for an answer.
        """
        self.load()
        with transformers_silenced():
            return generate(self._policy, self.tokenizer, prompts, decoding, track=track)

    def stream(self, prompt: Sequence[int], decoding: Decoding, write: Callable[[str], object]) -> Answer:
        """Answer one prompt, and hand on each piece of the answer as soon as it is there."""
        self.load()
        with transformers_silenced():
            (answer,) = generate(self._policy, self.tokenizer, [prompt], decoding, write=write)
        return answer

    def load(self) -> None:
        """Load the model now.

        Raises:
            ModelError: it cannot be loaded.
        """
        _ = self._policy

    @cached_property
    def _policy(self) -> "PreTrainedModel":
        with transformers_silenced():
            return load_model(self._folder, self._reference)
