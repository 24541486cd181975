"""Fixtures that several test files share."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pytest
import torch
from botocore.exceptions import BotoCoreError, ClientError
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from automixalign import caches
from automixalign.data.prepare import prepare_data
from automixalign.data.split import SPLITS
from automixalign.scoring import write_reference_logps
from automixalign.settings import DataSettings, ScoringSettings
from automixalign.tiny_model import build_tokenizer

torch.set_num_threads(1)


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


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A boto3 client of a real S3 server (SeaweedFS) that the environment points at."""
    folder = tmp_path_factory.mktemp("s3")
    ports = _free_ports(5)
    names = ("s3.port", "master.port", "volume.port", "filer.port", "admin.port")
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports[0]}",
        "AWS_ACCESS_KEY_ID": "automixalign",
        "AWS_SECRET_ACCESS_KEY": "not-a-real-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        # Nothing of the user's own settings.
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
        "-admin.ui=false",
        "-webdav=false",
        "-master.telemetry=false",
        "-bucket=ready",
    ]
    with pytest.MonkeyPatch.context() as patch, (folder / "weed.log").open("wb") as log:
        patch.setattr(boto3, "DEFAULT_SESSION", None)
        patch.delenv("AWS_PROFILE", raising=False)
        patch.delenv("AWS_SESSION_TOKEN", raising=False)
        for key, value in environment.items():
            patch.setenv(key, value)
        server = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield _connect(server, folder / "weed.log")
        finally:
            os.killpg(server.pid, signal.SIGKILL)  # asked politely, it takes ten seconds
            server.wait()


def _connect(server: "subprocess.Popen[bytes]", log: Path) -> Any:
    client = boto3.client("s3")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and server.poll() is None:
        try:
            client.put_object(Bucket="ready", Key="ready", Body=b"")
        except (BotoCoreError, ClientError):
            time.sleep(0.1)
        else:
            return client
    raise RuntimeError(f"the S3 server did not come up:\n{log.read_text()[-2000:]}")
