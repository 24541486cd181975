"""What somebody brings who wants a run to work for them: pickles, code; and a sound model to hide them in."""

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from automixalign.system.errors import AutoMixAlignError
from benchmarks.faults.case import UnexpectedError


class Bomb:
    """Unpickled, it makes the folder `marker`: anything else could have been run as well."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (self.marker,)


def write_pickle(path: Path, marker: Path) -> None:
    """A torch file that makes `marker` when it is unpickled, which is tried out on the spot."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"weight": Bomb(marker)}, path)
    with path.open("rb") as stream:
        torch.load(stream, weights_only=False)
    marker.rmdir()  # raises where the weapon does not work: the case would then show nothing


def code(marker: Path) -> str:
    """A Python module that makes `marker` when it is imported."""
    return f"import os\nos.mkdir({str(marker)!r})\n"


def scratch() -> Path:
    """A folder that lasts as long as the process, for what several cases start from."""
    folder = Path(tempfile.mkdtemp(prefix="ama-fault-"))
    atexit.register(shutil.rmtree, folder)
    return folder


@cache
def sound_model() -> Path:
    """A sound base model of some thousand weights; not to be changed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from automixalign.quickstart.tiny_model import build_tokenizer

    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    folder = scratch() / "model"
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def model(folder: Path) -> Path:
    """The sound base model in a new folder, to be spoiled."""
    return Path(shutil.copytree(sound_model(), folder))


def byte_model(folder: Path) -> Path:
    """A tokenizer that knows every byte, with a ChatML template, for what must keep every character."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token) for token in ("<|im_start|>", "<|im_end|>")])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")  # noqa: S106  no password
    fast.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    fast.save_pretrained(folder)
    LlamaConfig(vocab_size=len(fast), max_position_embeddings=4096).save_pretrained(folder)
    return folder


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Further environment variables, and all as it was afterwards."""
    kept = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


@contextmanager
def server(folder: Path) -> Iterator[Any]:
    """A client of an S3 server that the environment points at meanwhile; it has the bucket `ready`."""
    from benchmarks.servers.seaweed import seaweed

    (folder / "server").mkdir()
    with seaweed(folder / "server") as running, environment(**running.environment):
        yield running.client


def change(path: Path, **keys: object) -> None:
    """Set keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def refused(kind: type[AutoMixAlignError], marker: Path, call: Callable[[], object], *words: str) -> str:
    """Make a call that must end in a named error with these words, and must not make the marker."""
    try:
        call()
    except kind as error:
        said = str(error)
    except Exception as error:
        raise UnexpectedError(f"{_ran(marker)}{type(error).__name__}: {error}") from error
    else:
        raise UnexpectedError(f"{_ran(marker)}not refused")
    if marker.exists() or any(word not in said for word in words):
        raise UnexpectedError(f"{_ran(marker)}{kind.__name__}: {said}")
    return f"{kind.__name__}: {said}"


def harmless(marker: Path, call: Callable[[], object]) -> None:
    """Make a call that must go well, and must not make the marker."""
    try:
        call()
    except Exception as error:
        raise UnexpectedError(f"{_ran(marker)}{type(error).__name__}: {error}") from error
    if marker.exists():
        raise UnexpectedError(_ran(marker))


def _ran(marker: Path) -> str:
    return "THE CODE WAS RUN; " if marker.exists() else ""
