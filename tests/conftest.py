"""Fixtures that several test files share."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import numpy as np
import pyarrow as pa
import pytest
import torch
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from automixalign import caches
from automixalign.data.prepare import prepare_data
from automixalign.data.split import SPLITS
from automixalign.scoring import write_reference_logps
from automixalign.settings import DataSettings, ScoringSettings
from automixalign.tiny_model import build_tokenizer

torch.set_num_threads(1)


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
def base_model(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Folder of a Llama of some thousand random weights, with `tokenizer`; not to be changed."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    folder = tmp_path_factory.mktemp("base") / "model"
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def two_tasks(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared splits of two synthetic tasks, `format` and `refusal`; not to be changed."""
    folder = tmp_path_factory.mktemp("two_tasks") / "data"
    settings = {
        "seed": 0,
        "tasks": [{"name": name, "source": f"synthetic:{name}", "limit": 30} for name in ("format", "refusal")],
        "split": {"test": 0.3},
        "max_length": 64,
        "fingerprints": ["", ""],
    }
    prepare_data(DataSettings.model_validate(settings), base_model, folder)
    return folder


@pytest.fixture(scope="session")
def two_references(base_model: Path, two_tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference log-probabilities of `two_tasks` under `base_model`; not to be changed."""
    folder = tmp_path_factory.mktemp("two_references") / "logps"
    settings = ScoringSettings(seed=0, batch_size=16, precision="fp32")
    write_reference_logps(settings, two_tasks, base_model, folder)
    return folder


@pytest.fixture(scope="session")
def two_losses(two_tasks: Path, two_references: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Made-up specialist losses of `two_tasks`, some above and some below ln 2; not to be changed."""
    folder = tmp_path_factory.mktemp("two_losses")
    generator = np.random.default_rng(0)
    for task in ("format", "refusal"):
        tables = {}
        for split in SPLITS:
            scores = caches.read_cache(two_references / task, split)
            losses = generator.uniform(0.4, 0.8, size=len(scores))
            tables[split] = scores.append_column(caches.LOSS, pa.array(losses))
        caches.write_cache(folder / task, task, tables, two_tasks)
    return [folder / "refusal", folder / "format"]


@pytest.fixture
def experiment_data() -> dict[str, Any]:
    """A small valid configuration with two synthetic tasks; the test's own to change."""
    return {
        "name": "tiny",
        "base_model": {"source": "tiny", "tiny": {"hidden_size": 16, "layers": 1, "heads": 2, "steps": 2}},
        "tasks": [
            {"name": "arithmetic", "source": "synthetic:arithmetic", "limit": 20, "verifier": "exact"},
            {"name": "format", "source": "synthetic:format", "limit": 20},
        ],
        "max_length": 64,
        "training": {"batch_size": 4, "learning_rate": 0.001},
        "budget": {"specialist": {"steps": 2}, "generalist": {"steps": 3}},
        "methods": ["standard", {"method": "ama-r", "eta": 0.1}, "ama-s"],
        "merges": ["linear"],
    }


def _free_ports(count: int) -> list[int]:
    """Ports that are free together with the port 10,000 above, which weed takes for gRPC."""
    found: list[int] = []
    for port in range(20000 + os.getpid() % 10000, 50000):
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + 10000))
            except OSError:
                continue
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("there are no free ports")


class Seaweed(NamedTuple):
    """A running S3 server (SeaweedFS) and what a client must know of it."""

    process: "subprocess.Popen[bytes]"
    ports: list[int]
    environment: dict[str, str]
    """For boto3: endpoint and credentials, and nothing of the user's own settings."""
    client: Any

    @property
    def endpoint(self) -> str:
        return self.environment["AWS_ENDPOINT_URL"]

    def kill(self) -> None:
        """End the server and all it started at once; asked politely, it takes ten seconds."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def seaweed(folder: Path, ports: list[int] | None = None) -> Iterator[Seaweed]:
    """Run an S3 server on 127.0.0.1 that keeps its objects in `folder` and has the bucket `ready`.

    A server that was killed can be started again on its folder, with the same ports.
    """
    ports = ports or _free_ports(5)
    names = ("s3.port", "master.port", "volume.port", "filer.port", "admin.port")
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports[0]}",
        "AWS_ACCESS_KEY_ID": "automixalign",
        "AWS_SECRET_ACCESS_KEY": "not-a-real-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_CONFIG_FILE": str(folder / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "none"),
    }
    command = [
        str(Path(sys.executable).with_name("weed")),
        "mini",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        *(f"-{name}={port}" for name, port in zip(names, ports, strict=True)),
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",
        "-admin.ui=false",
        "-webdav=false",
        "-master.telemetry=false",
        # Each bucket takes several volumes; by itself the server counts them by what is free on the disk.
        "-master.volumeSizeLimitMB=64",
        "-volume.max=1000",
        "-bucket=ready",
    ]
    with (folder / "weed.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    client = boto3.Session().client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_DEFAULT_REGION"],
        config=Config(retries={"total_max_attempts": 1}),
    )
    server = Seaweed(process, ports, environment, client)
    try:
        _wait_for(server, folder / "weed.log")
        yield server
    finally:
        server.kill()


def _wait_for(server: Seaweed, log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            server.client.put_object(Bucket="ready", Key="ready", Body=b"")
        except (BotoCoreError, ClientError):
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"the S3 server did not come up:\n{log.read_text()[-2000:]}")


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
