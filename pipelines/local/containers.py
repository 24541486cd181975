"""A local run whose steps are containers: `ama run --runner docker`, through kfp's DockerRunner.

A step's container sees the image, the run folder, the local sources of the experiment (read-only) and scratch;
it has no network unless the configuration names a service (see `needs.py`), and no rights of root.
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
from automixalign.report.run_folder import WORK
from automixalign.steps.tracking import spool
from automixalign.system.errors import ConfigError
from automixalign.system.provenance import library_digest
from components.image import IMAGE
from pipelines.local.needs import needs_of
from pipelines.local.sending import STORE

NETWORK = "AMA_DOCKER_NETWORK"
"""The network of steps that need one: a name docker knows, or `host` for servers at this machine's loopback."""
MEMORY = "AMA_DOCKER_MEMORY"
"""What one step may take, as in `8g`; by default nine tenths of the engine's memory."""
RUN = "automixalign.run"
"""The label of a run's containers: its folder."""
ACCELERATOR = "automixalign.accelerator"
"""The image's label: `cpu` or `cuda`."""

_ADVICE = "`make images` builds it, `docker pull` fetches one, AMA_IMAGE names another"
_SCRATCH = "/scratch"
"""Where containers see the run's scratch folder: on disk, unlike /tmp, and with a short name, for sockets."""
_PIDS = 4096
_PAUSE = 0.3
_NOBODY = 1001
_TRY = """
import json, os, pathlib, sys
from automixalign.system.provenance import library_digest
readable, writable = json.loads(sys.argv[1])
read = [path for place in map(pathlib.Path, readable) for path in (place, *place.rglob("*"))]
closed = [str(path) for path in read if path.exists() and not os.access(path, os.R_OK)]
closed += [path for path in writable if not os.access(path, os.W_OK)]
print(json.dumps([library_digest(), closed[:5]]))
"""


class Containers:
    """Puts the steps of one experiment's run into containers of the image that `AMA_IMAGE` names.

    Args:
        experiment: the checked configuration.

    Raises:
        ConfigError: there is no engine or no such image, or the experiment needs what containers cannot reach.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.needs = needs_of(experiment, os.environ)
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
        """See that a container can do what the steps must.

        Args:
            folder: the run folder, absolute, with its `.kfp`.
            environment: the run's own part of the environment.

        Returns:
            The file that tells kfp's runner of it.

        Raises:
            ConfigError: the container does not start, may not read or write, or holds another library.
        """
        self._run, scratch = folder, folder / WORK / "scratch"
        self.end()  # what is left of a run that was killed
        scratch.mkdir()
        if environment[spool.URI] == f"sqlite:///{folder / STORE}":
            (folder / STORE).touch()  # SQLite itself would open it to its owner alone
        if os.getuid() == 0:  # the steps are not root: they come in by the group
            self._umask = os.umask(0o002)
            for path in (folder, *folder.rglob("*")):
                os.chown(path, -1, 0)
                path.chmod(path.stat().st_mode | (path.stat().st_mode & 0o700) >> 3)
        values = {"HOME": _SCRATCH, "TMPDIR": _SCRATCH}
        if "hub" not in self.needs.services:
            values["HF_HUB_OFFLINE"] = "1"
        arguments = self._arguments(folder, scratch)
        self._try_out(folder, arguments, values)
        names = sorted({*environment, *self.needs.variables})
        made = {"arguments": arguments, "values": values, "names": names}
        file = folder / WORK / "containers.json"
        file.write_text(json.dumps(made), encoding="utf-8")
        return file

    def end(self) -> None:
        """Remove what is left of the run's containers, and their scratch."""
        if self._umask is not None:
            os.umask(self._umask)
        if self._run is None:
            return
        looks = 0
        while looks < 2:  # the engine may still be at work on the last request of a process that was killed
            left = self._left()
            for container in left:
                with suppress(NotFound, APIError):  # it goes by itself at this moment
                    container.remove(force=True)
            looks = 0 if left else looks + 1
            time.sleep(_PAUSE)
        shutil.rmtree(self._run / WORK / "scratch", ignore_errors=True)

    def _left(self) -> list[Any]:
        found: list[Any] = self.engine.containers.list(
            all=True, ignore_removed=True, filters={"label": f"{RUN}={self._run}"}
        )
        return found

    def _arguments(self, folder: Path, scratch: Path) -> dict[str, Any]:
        """What every container is started with, in the docker SDK's words."""
        uid = os.getuid()
        mounts = {path: True for path in self.needs.read} | {path: False for path in self.needs.write}
        mounts[folder] = False
        arguments: dict[str, Any] = {
            "user": f"{uid or _NOBODY}:0",
            "read_only": True,
            "tmpfs": {"/tmp": "mode=1777"},  # noqa: S108  the container's own
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "network_mode": self.network,
            "mem_limit": os.environ.get(MEMORY) or self.engine.info()["MemTotal"] * 9 // 10,
            "pids_limit": _PIDS,
            "shm_size": "1g",
            "labels": {RUN: str(folder)},
            # Relative paths in the configuration mean what they mean outside.
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

    def _try_out(self, folder: Path, arguments: Mapping[str, Any], values: Mapping[str, str]) -> None:
        """Start one container as the steps will be started, and look around in it."""
        readable = [str(path) for path in sorted(self.needs.read)]
        writable = [str(path) for path in sorted({folder, *self.needs.write})]
        command = ["python", "-c", _TRY, json.dumps([readable, writable])]
        try:
            said = self.engine.containers.run(
                self.image, command, environment=dict(values), remove=True, **arguments
            )
        except ContainerError as error:
            last = error.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise ConfigError(f"the image {self.image} does not run this library: {last}; {_ADVICE}") from error
        except DockerException as error:
            raise ConfigError(f"a container cannot be started as the run needs it: {error}") from error
        library, closed = json.loads(said)
        if closed:
            raise ConfigError(
                f"the steps run as user {arguments['user'].replace(':', ' of group ')}, who has no access to "
                f"{', '.join(closed)}: change their rights"
            )
        if library != library_digest():
            raise ConfigError(f"the image {self.image} holds another version of this library; {_ADVICE}")


def docker_runner(file: Path) -> local.DockerRunner:
    """kfp's runner, as `Containers.prepare` wrote it down; secrets are in the environment, not in the file."""
    made = json.loads(file.read_text(encoding="utf-8"))
    environment = {name: os.environ[name] for name in made["names"]} | made["values"]
    return local.DockerRunner(**made["arguments"], environment=environment)


def _connect() -> docker.DockerClient:
    try:
        engine = docker.from_env()
        engine.ping()
    except (DockerException, OSError) as error:
        place = os.environ.get("DOCKER_HOST", "its usual socket")
        raise ConfigError(
            f"--runner docker: no container engine answers at {place} ({error}): start one, or set DOCKER_HOST"
        ) from error
    return engine


def _find_image(engine: docker.DockerClient) -> Any:
    """The image, under the very name that kfp will look for."""
    name = add_latest_tag_if_not_present(IMAGE)
    with suppress(ImageNotFound):
        found = engine.images.get(name)
        if name in [*found.tags, *found.attrs["RepoDigests"]]:
            return found
    raise ConfigError(f"--runner docker: there is no image {name}; {_ADVICE}")
