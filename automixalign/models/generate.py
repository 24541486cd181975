"""Generate text: one way for evaluation, `ama chat` and `ama generate`.

A generation ends at any token that the model's generation config names as an end. `prepare_base_model` writes
them there; transformers, vLLM and MLflow read them from the same file.
"""

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, TextStreamer
from transformers.utils import GENERATION_CONFIG_NAME

from automixalign.config.settings import Precision
from automixalign.models.load import autocast, position_limit
from automixalign.models.rope import depends_on_length
from automixalign.storage import files
from automixalign.system.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_CHANGE_GREEDY = {
    *("repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "sequence_bias", "guidance_scale"),
    *("min_length", "min_new_tokens", "suppress_tokens", "begin_suppress_tokens", "stop_strings"),
    *("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty"),
}
"""Keys of a generation config that also change the most likely token, or end an answer."""
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")


@dataclass(frozen=True)
class Decoding:
    """How to generate."""

    max_new_tokens: int
    batch_size: int = 1
    """Prompts that are continued together."""
    precision: Precision = "fp32"
    temperature: float = 0.0
    """0 is greedy. Otherwise tokens are drawn, with `top_p` and `top_k` of the model's generation config."""
    seeded_top_p: float = 1.0
    """Instead of `top_p` and `top_k` of the model's generation config, where the answers have seeds."""


Track: TypeAlias = Callable[[Iterable[list[int]], int], Iterable[list[int]]]
"""Gets batches of prompts and their number, returns those to answer, and may show the progress."""


def all_at_once(batches: Iterable[list[int]], _: int) -> Iterable[list[int]]:
    """Show no progress."""
    return batches


class Answer(NamedTuple):
    """What a model adds to a prompt."""

    text: str
    """Without special tokens."""
    complete: bool
    """Whether it ends by itself, and not at the largest number of tokens."""


def write_ends(folder: Path, tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], dict[str, Any]]:
    """Name all ends of a generation in the generation config of a model folder, and the padding.

    The ends are those that the config names, and the end of the tokenizer. The other keys stay as they are.

    Returns:
        The ids of the ends, and the keys that also change greedy decoding.
    """
    path = folder / GENERATION_CONFIG_NAME
    values = files.read_json(path)
    config = GenerationConfig.from_dict(values)
    ends = list(dict.fromkeys([tokenizer.eos_token_id, *_ids(config.eos_token_id)]))
    # `save_pretrained` refuses a changed config with a temperature and no `do_sample`, as many models have it.
    changes = {"eos_token_id": ends[0] if len(ends) == 1 else ends, "pad_token_id": tokenizer.pad_token_id}
    files.write_json(path, values | changes)
    set_keys = {key: value for key, value in config.to_diff_dict().items() if key in _CHANGE_GREEDY}
    return ends, {key: value for key, value in set_keys.items() if value not in (None, 0, 1)}


def room(config: "PreTrainedConfig", prompt: Sequence[int], wanted: int) -> int:
    """How many tokens a model of this configuration can add to a prompt, `wanted` at most."""
    limit = position_limit(config)
    return wanted if limit is None else max(0, min(wanted, limit - len(prompt)))


def generate(
    policy: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    seeds: Sequence[str] | None = None,
    track: Track = all_at_once,
    write: Callable[[str], object] | None = None,
) -> list[Answer]:
    """Continue tokenised prompts.

    Args:
        policy: the model, on its device.
        tokenizer: its tokenizer, with a token for padding.
        prompts: token ids.
        decoding: how to generate.
        seeds: one for each prompt; all draws of its answer depend on this seed alone, whatever the batch.
            Without them, torch's global generator draws.
        track: shows the progress.
        write: gets each piece of the answer as soon as it is there; for one prompt.

    Returns:
        The answers, in the order of the prompts.

    Raises:
        ModelError: a prompt leaves no room for an answer.
    """
    answers = [Answer("", complete=False)] * len(prompts)
    rooms = [room(policy.config, prompt, decoding.max_new_tokens) for prompt in prompts]
    if min(rooms, default=1) < 1:
        prompt = prompts[rooms.index(min(rooms))]
        raise ModelError(
            f"a prompt of {len(prompt)} tokens leaves no room for an answer: the model has "
            f"{position_limit(policy.config)} positions; shorten it"
        )
    order = sorted(range(len(prompts)), key=lambda number: (-rooms[number], len(prompts[number])))
    # Prompts of a batch have equal room, so that an answer does not depend on its batch. Where positions depend
    # on the row's length, prompts also have equal length: transformers takes padding for tokens of the row.
    alone = depends_on_length(policy.config)
    batches = [
        equal[start : start + decoding.batch_size]
        for _, group in itertools.groupby(order, key=lambda row: (rooms[row], alone and len(prompts[row])))
        for equal in [list(group)]
        for start in range(0, len(equal), decoding.batch_size)
    ]
    policy.eval()
    for batch in track(batches, len(batches)):
        chunk = [list(prompts[number]) for number in batch]
        drawn = None if seeds is None else [seeds[number] for number in batch]
        continued = _continue(policy, tokenizer, chunk, decoding, rooms[batch[0]], drawn, write)
        for number, answer in zip(batch, continued, strict=True):
            answers[number] = answer
    return answers


@torch.inference_mode()
def _continue(
    policy: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: list[list[int]],
    decoding: Decoding,
    max_new_tokens: int,
    seeds: list[str] | None,
    write: Callable[[str], object] | None,
) -> list[Answer]:
    padded = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(policy.device)
    ends = set(_ids(policy.generation_config.eos_token_id))
    sampling: dict[str, Any] = {"do_sample": False, **dict.fromkeys(_SAMPLING)}
    if decoding.temperature and seeds is None:
        sampling = {"do_sample": True, "temperature": float(decoding.temperature)}
    elif decoding.temperature and seeds is not None:
        sampling["logits_processor"] = LogitsProcessorList([_Draws(seeds, decoding)])
    with autocast(decoding.precision):
        ids = policy.generate(
            **padded,
            **sampling,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            tokenizer=tokenizer,  # for `stop_strings`
            streamer=None if write is None else _Writer(tokenizer, ends, write),
        )
    new = ids[:, padded["input_ids"].shape[1] :].tolist()
    # An end need not be a special token, so decoding would not always leave it out.
    own = [list(itertools.takewhile(lambda token: token not in ends, tokens)) for tokens in new]
    texts = tokenizer.batch_decode(own, skip_special_tokens=True)
    return [
        Answer(text, complete=len(tokens) < max_new_tokens) for text, tokens in zip(texts, own, strict=True)
    ]


class _Draws(LogitsProcessor):  # type: ignore[misc]
    """Leaves one token of each row, drawn by the row's own random numbers.

    Args:
        seeds: of the rows.
        decoding: `temperature` and `seeded_top_p`.
    """

    def __init__(self, seeds: Sequence[str], decoding: Decoding) -> None:
        self._generators = [random.Random(seed) for seed in seeds]
        self._temperature, self._top_p = decoding.temperature, decoding.seeded_top_p

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores with -inf for all tokens but one of each row; both have the shape (rows, tokens)."""
        probabilities = (scores.double() / self._temperature).softmax(-1)
        if self._top_p < 1:  # the smallest set of most likely tokens with this probability, as in TRL and vLLM
            ordered, order = probabilities.sort(descending=True, stable=True)
            ordered[ordered.cumsum(-1) - ordered >= self._top_p] = 0
            probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered)
        # Inverse transform sampling in the order of the vocabulary: rounding moves the limits between tokens by
        # as much as it moves the probabilities, so an answer hardly depends on what else its batch holds.
        limits = probabilities.cumsum(-1)
        drawn = [[each.random()] for each in self._generators]
        points = torch.tensor(drawn, dtype=torch.float64, device=scores.device) * limits[:, -1:]
        tokens = torch.searchsorted(limits, points, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens, 0.0)


class _Writer(TextStreamer):  # type: ignore[misc]  # transformers has no types for it
    """Hands on each piece of an answer, without its end."""

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", ends: set[int], write: Callable[[str], object]
    ) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._ends, self._write = ends, write

    def put(self, value: torch.Tensor) -> None:
        if self.next_tokens_are_prompt or value.flatten()[0].item() not in self._ends:
            super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._write(text)


def _ids(value: int | list[int] | None) -> list[int]:
    return [] if value is None else value if isinstance(value, list) else [value]
