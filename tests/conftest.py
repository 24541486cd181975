"""Fixtures that several test files share."""

import gc
import inspect
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from automixalign.quickstart.tiny_model import build_tokenizer
from automixalign.system.messages import print_messages
from benchmarks import tiny
from benchmarks.servers.seaweed import Seaweed, seaweed

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """What a shell starts in the background ignores SIGINT, and tests of interruptions would wait for ever."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _messages_on_stderr() -> None:
    print_messages()


@pytest.fixture(scope="session", autouse=True)
def _frames_without_source() -> Iterator[None]:
    """kfp asks the stack for a name; with so many modules, the source that comes with it takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspect, "stack", lambda context=1: inspect.getouterframes(sys._getframe(1), 0))
        yield


@pytest.fixture(scope="module", autouse=True)
def _little_to_collect() -> None:
    """Each training looks for garbage, which takes longer than its steps among all that has been imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _own_step_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test meets what the user's own runs have made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMA_CACHE", str(tmp_path_factory.mktemp("steps")))
        yield


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A token a character, with a chat template."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a Llama of some thousand random weights, with `tokenizer`; not to be changed."""
    folder = tmp_path_factory.mktemp("base") / "model"
    tiny.write_base_model(folder)
    return folder


@pytest.fixture(scope="session")
def two_tasks(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared splits of two synthetic tasks, `format` and `refusal`; not to be changed."""
    folder = tmp_path_factory.mktemp("two_tasks") / "data"
    tiny.write_data(base_model, folder)
    return folder


@pytest.fixture(scope="session")
def two_reference_logps(base_model: Path, two_tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference log-probabilities of `two_tasks` under `base_model`; not to be changed."""
    folder = tmp_path_factory.mktemp("two_reference_logps") / "logps"
    tiny.write_references(two_tasks, base_model, folder)
    return folder


@pytest.fixture(scope="session")
def two_losses(
    two_tasks: Path, two_reference_logps: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Made-up specialist losses of `two_tasks`, some above and some below ln 2; not to be changed."""
    return tiny.write_losses(two_tasks, two_reference_logps, tmp_path_factory.mktemp("two_losses"))


@pytest.fixture
def experiment_data() -> dict[str, Any]:
    """A small valid configuration with two synthetic tasks; the test's own to change."""
    methods = ["standard", {"method": "ama-r", "eta": 0.1}, "ama-s"]
    return {**tiny.experiment(), "methods": methods, "merges": ["linear"]}


def use(server: Seaweed, patch: pytest.MonkeyPatch) -> None:
    """Point the environment at a server, and have boto3 look at it again as a new process would."""
    patch.setattr(boto3, "DEFAULT_SESSION", None)
    for key in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        patch.delenv(key, raising=False)
    for key, value in server.environment.items():
        patch.setenv(key, value)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A boto3 client of a real S3 server (SeaweedFS) that the environment points at."""
    with pytest.MonkeyPatch.context() as patch, seaweed(tmp_path_factory.mktemp("s3")) as server:
        use(server, patch)
        yield server.client
