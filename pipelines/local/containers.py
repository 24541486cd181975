"""Run stages in containers: `ama run --runner docker`, through kfp's DockerRunner.

A container sees the image, the run folder, the experiment's local sources (read-only) and a scratch folder.
With a `registry`, it also sees the folder of an MLflow store that is a file. It has no root rights, and no
network unless the configuration names a service (see `needs.py`).
"""

import json
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError, ContainerError, DockerException, ImageNotFound, NotFound
from docker.types import DeviceRequest, Mount
from kfp import local
from kfp.local.docker_task_handler import add_latest_tag_if_not_present

from automixalign.config.experiment import Experiment
from automixalign.config.plan import outside_code, uses_of
from automixalign.report.run_folder import WORK
from automixalign.steps.tracking.store import ARTIFACTS
from automixalign.system.errors import ConfigError
from automixalign.system.provenance import code_digest, library_digest
from components.image import IMAGE
from pipelines.local.needs import needs_of

NETWORK = "AMA_DOCKER_NETWORK"
"""Names docker's network for stages that need one; `host` gives access to servers at the loopback address."""
MEMORY = "AMA_DOCKER_MEMORY"
"""Memory limit of one container, as in `8g`; by default nine tenths of the engine's memory."""
RUN = "automixalign.run"
"""Label of a run's containers; its value is the run folder."""
ACCELERATOR = "automixalign.accelerator"
"""Label of the image: `cpu` or `cuda`."""

_ADVICE = "`make images` builds it, `docker pull` fetches one, AMA_IMAGE names another"
_SCRATCH = "/scratch"
"""Path of the run's scratch folder in containers. It is on disk, unlike /tmp, and short enough for sockets."""
_MAX_PROCESSES = 4096
_PAUSE_SECONDS = 0.3
_UNPRIVILEGED_USER = 1001
_PROBE = """
import json, os, pathlib, sys
from automixalign.system.provenance import code_digest, library_digest
readable, writable, plugins = json.loads(sys.argv[1])
inputs = [path for root in map(pathlib.Path, readable) for path in (root, *root.rglob("*"))]
forbidden = [str(path) for path in inputs if path.exists() and not os.access(path, os.R_OK)]
forbidden += [path for path in writable if not os.access(path, os.W_OK)]
digests = {}
for module in plugins:
    try:
        digests[module] = code_digest([module])
    except ModuleNotFoundError:
        pass
print(json.dumps([library_digest(), forbidden[:5], digests]))
"""


class Containers:
    """Executes the stages of one run in containers of the image that `AMA_IMAGE` names.

    Args:
        experiment: the checked configuration.

    Raises:
        ConfigError: the engine or the image is missing, or containers cannot reach what the experiment needs.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.needs = needs_of(experiment, os.environ)
        self.plugins = outside_code(uses_of(experiment))
        self.network = os.environ.get(NETWORK, "bridge") if self.needs.services else "none"
        if self.network == "bridge" and self.needs.loopback:
            raise ConfigError(
                f"{' and '.join(sorted(self.needs.loopback))}: a container has a loopback address of its own; "
                f"name the server by another address, or set {NETWORK}=host"
            )
        self.engine = _connect()
        image = _find_image(self.engine)
        self.image, self.accelerator = IMAGE, image.labels.get(ACCELERATOR)
        self._run: Path | None = None
        self._umask: int | None = None

    def prepare(self, folder: Path, environment: Mapping[str, str]) -> Path:
        """Check that a container can do the work of the stages.

        Args:
            folder: the run folder, absolute, with its `.kfp`.
            environment: the variables of the run.

        Returns:
            The file that describes the containers for `docker_runner`.

        Raises:
            ConfigError: the container does not start, cannot read or write a path, or has another library.
        """
        self._run, scratch = folder, folder / WORK / "scratch"
        self.end()  # removes the containers of a run that was killed
        scratch.mkdir()
        shared = [folder, *folder.rglob("*")]
        if self.needs.store:
            self.needs.store.touch()  # SQLite would give access to its owner only
            artifacts = self.needs.store.with_name(ARTIFACTS)
            artifacts.mkdir(exist_ok=True)
            folders = (path for path in artifacts.rglob("*") if path.is_dir())  # of earlier runs
            shared += [self.needs.store.parent, self.needs.store, artifacts, *folders]
        if os.getuid() == 0:  # the stages are not root: their group gives them access
            self._umask = os.umask(0o002)
            for path in shared:
                os.chown(path, -1, 0)
                path.chmod(path.stat().st_mode | (path.stat().st_mode & 0o700) >> 3)
        values = {"HOME": _SCRATCH, "TMPDIR": _SCRATCH}
        if "hub" not in self.needs.services:
            values["HF_HUB_OFFLINE"] = "1"
        arguments = self._arguments(folder, scratch)
        self._probe(folder, arguments, values)
        names = sorted({*environment, *self.needs.variables})
        description = {"arguments": arguments, "values": values, "names": names}
        file = folder / WORK / "containers.json"
        file.write_text(json.dumps(description), encoding="utf-8")
        return file

    def end(self) -> None:
        """Remove the run's remaining containers and their scratch folder."""
        if self._umask is not None:
            os.umask(self._umask)
        if self._run is None:
            return
        label = {"label": f"{RUN}={self._run}"}
        empty_lists = 0
        while empty_lists < 2:  # the engine may still handle the last request of a process that was killed
            containers = self.engine.containers.list(all=True, ignore_removed=True, filters=label)
            for container in containers:
                with suppress(NotFound, APIError):  # it may end by itself at this moment
                    container.remove(force=True)
            empty_lists = 0 if containers else empty_lists + 1
            time.sleep(_PAUSE_SECONDS)
        shutil.rmtree(self._run / WORK / "scratch", ignore_errors=True)

    def _arguments(self, folder: Path, scratch: Path) -> dict[str, Any]:
        """The docker SDK's arguments for every container."""
        uid = os.getuid()
        mounts = {path: True for path in self.needs.read} | {path: False for path in self.needs.write}
        mounts[folder] = False
        arguments: dict[str, Any] = {
            "user": f"{uid or _UNPRIVILEGED_USER}:0",
            "read_only": True,
            "tmpfs": {"/tmp": "mode=1777"},  # noqa: S108  a path in the container
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "network_mode": self.network,
            "mem_limit": os.environ.get(MEMORY) or self.engine.info()["MemTotal"] * 9 // 10,
            "pids_limit": _MAX_PROCESSES,
            "shm_size": "1g",
            "labels": {RUN: str(folder)},
            # Relative paths in the configuration then mean the same as outside.
            "working_dir": str(Path.cwd()),
            "mounts": [
                *(
                    Mount(str(path), str(path), type="bind", read_only=read_only)
                    for path, read_only in sorted(mounts.items())
                ),
                Mount(_SCRATCH, str(scratch), type="bind"),
            ],
        }
        if self.accelerator == "cuda":
            arguments["device_requests"] = [DeviceRequest(count=-1, capabilities=[["gpu"]])]
        return arguments

    def _probe(self, folder: Path, arguments: Mapping[str, Any], values: Mapping[str, str]) -> None:
        """Start one container like those of the stages, and check its library and its access to files."""
        readable = [str(path) for path in sorted(self.needs.read)]
        writable = [str(path) for path in sorted({folder, *self.needs.write})]
        command = ["python", "-c", _PROBE, json.dumps([readable, writable, self.plugins])]
        try:
            output = self.engine.containers.run(
                self.image, command, environment=dict(values), remove=True, **arguments
            )
        except ContainerError as error:
            last = error.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise ConfigError(f"the image {self.image} does not run this library: {last}; {_ADVICE}") from error
        except DockerException as error:
            raise ConfigError(f"a container cannot be started as the run needs it: {error}") from error
        library, forbidden, digests = json.loads(output)
        if forbidden:
            raise ConfigError(
                f"the stages run as user {arguments['user'].replace(':', ' of group ')}, who has no access to "
                f"{', '.join(forbidden)}: change the permissions"
            )
        if library != library_digest():
            raise ConfigError(f"the image {self.image} has another version of this library; {_ADVICE}")
        if other := [module for module in self.plugins if digests.get(module) != code_digest([module])]:
            raise ConfigError(
                f"the image {self.image} has no {', '.join(other)}, or another version of it: add it to the "
                "image, as docs/extending.md shows"
            )


def docker_runner(file: Path) -> local.DockerRunner:
    """kfp's runner, from the file of `Containers.prepare`; secrets come from the environment."""
    description = json.loads(file.read_text(encoding="utf-8"))
    environment = {name: os.environ[name] for name in description["names"]} | description["values"]
    return local.DockerRunner(**description["arguments"], environment=environment)


def _connect() -> docker.DockerClient:
    try:
        engine = docker.from_env()
        engine.ping()
    except (DockerException, OSError) as error:
        address = os.environ.get("DOCKER_HOST", "its usual socket")
        raise ConfigError(
            f"--runner docker: no container engine answers at {address} ({error}): start one or set DOCKER_HOST"
        ) from error
    return engine


def _find_image(engine: docker.DockerClient) -> Any:
    """The image with exactly the name that kfp looks for."""
    name = add_latest_tag_if_not_present(IMAGE)
    with suppress(ImageNotFound):
        image = engine.images.get(name)
        if name in [*image.tags, *image.attrs["RepoDigests"]]:
            return image
    raise ConfigError(f"--runner docker: there is no image {name}; {_ADVICE}")
