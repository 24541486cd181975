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

from automixalign.data.row_formats.registry import registered_formats
from automixalign.method.merge_methods import registered_merges
from automixalign.method.mixer import load_mixers
from automixalign.quickstart.tiny_model import build_tokenizer
from automixalign.scoring.metrics.registry import registered_metrics
from automixalign.scoring.verifiers.registry import registered_verifiers
from automixalign.system import plugins
from automixalign.system.messages import print_messages
from benchmarks import tiny
from benchmarks.servers.seaweed import Seaweed, seaweed

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """A background process of a shell ignores SIGINT; tests of interruptions would then never end."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _messages_on_stderr() -> None:
    print_messages()


@pytest.fixture(scope="session", autouse=True)
def _frames_without_source() -> Iterator[None]:
    """kfp reads a name from the stack; reading the source code of every frame too would take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspect, "stack", lambda context=1: inspect.getouterframes(sys._getframe(1), 0))
        yield


@pytest.fixture(scope="module", autouse=True)
def _few_objects_to_collect() -> None:
    """Each training collects garbage; with all imported modules, that would take longer than its steps."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _empty_stage_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests do not use the cached results of the user's runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMA_CACHE", str(tmp_path_factory.mktemp("steps")))
        yield


@pytest.fixture
def own_plugins() -> Iterator[None]:
    """What a test registers is gone afterwards."""
    loads = (load_mixers, registered_merges, registered_formats, registered_verifiers, registered_metrics)
    for load in loads:
        load()
    known = [plugins._modules, *(load.__wrapped__.__self__._items for load in loads)]
    before = [dict(items) for items in known]
    yield
    for items, old in zip(known, before, strict=True):
        items.clear()
        items.update(old)
    for load in loads:
        load.cache_clear()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each character, with a chat template."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a Llama with a few thousand random weights, and `tokenizer`; tests must not change it."""
    folder = tmp_path_factory.mktemp("base") / "model"
    tiny.write_base_model(folder)
    return folder


@pytest.fixture(scope="session")
def two_tasks(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared splits of two synthetic tasks, `format` and `refusal`; tests must not change them."""
    folder = tmp_path_factory.mktemp("two_tasks") / "data"
    tiny.write_data(base_model, folder)
    return folder


@pytest.fixture(scope="session")
def two_reference_logps(base_model: Path, two_tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference log-probabilities of `two_tasks` under `base_model`; tests must not change them."""
    folder = tmp_path_factory.mktemp("two_reference_logps") / "logps"
    tiny.write_references(two_tasks, base_model, folder)
    return folder


@pytest.fixture(scope="session")
def two_losses(
    two_tasks: Path, two_reference_logps: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Made-up specialist losses of `two_tasks`, above and below ln 2; tests must not change them."""
    return tiny.write_losses(two_tasks, two_reference_logps, tmp_path_factory.mktemp("two_losses"))


@pytest.fixture
def experiment_data() -> dict[str, Any]:
    """A small valid configuration with two synthetic tasks; a test may change it."""
    methods = ["standard", {"method": "ama-r", "eta": 0.1}, "ama-s"]
    return {**tiny.experiment(), "methods": methods, "merges": ["linear"]}


def use(server: Seaweed, patch: pytest.MonkeyPatch) -> None:
    """Name a server in the environment, and make boto3 read the environment again."""
    patch.setattr(boto3, "DEFAULT_SESSION", None)
    for key in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        patch.delenv(key, raising=False)
    for key, value in server.environment.items():
        patch.setenv(key, value)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A boto3 client of a real S3 server (SeaweedFS), which the environment names."""
    with pytest.MonkeyPatch.context() as patch, seaweed(tmp_path_factory.mktemp("s3")) as server:
        use(server, patch)
        yield server.client
