"""Runs a container engine for the tests, Debian's dockerd on its own socket, and builds the image in it.

The engine stays within its folder, makes no network and no firewall rule, and ends with its containers.
The user's cache folder keeps the wheels, and a substitute for the base image if no registry can be reached.
"""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import docker
from docker.errors import APIError, DockerException

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "automixalign"
BASE, IMAGE = "python:3.11-slim", "automixalign:test"
PACKAGES = {"dockerd": "docker.io", "debootstrap": "debootstrap"}
"""Program -> its Debian package."""
_BASE_PACKAGES = ("python3", "python3-venv", "ca-certificates")


class NoEngineError(Exception):
    """This machine has no container engine; the message says why."""


@contextmanager
def engine(folder: Path) -> Iterator[str]:
    """Run dockerd in `folder`, whose path must be short for its socket, and yield its address.

    Raises:
        NoEngineError: dockerd cannot be installed or does not start.
    """
    _install()
    address, log = f"unix://{folder}/docker.sock", folder / "dockerd.log"
    command = ["dockerd", "--host", address, "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec"]
    command += ["--pidfile", f"{folder}/pid", "--bridge=none", "--iptables=false", "--ip6tables=false"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    try:
        _wait_for(process, address, log)
        yield address
    finally:
        process.terminate()  # it ends its containers and its containerd
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        _unmount_below(folder)


def _unmount_below(folder: Path) -> None:
    """Undo the mounts that dockerd leaves behind, usually that of its network."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in sorted((mount for mount in mounts if Path(mount).is_relative_to(folder)), reverse=True):
        subprocess.run(["umount", mount], check=True)  # noqa: S607


def build(address: str, scratch: Path) -> None:
    """Build `IMAGE` with `make` and without a network, on a base image that is pulled or made.

    Args:
        address: address of the engine.
        scratch: an empty folder.
    """
    if sys.version_info[:2] != (3, 11):
        raise RuntimeError("the tests need Python 3.11: they build wheels for the image's Python")
    with ThreadPoolExecutor() as both:
        base = both.submit(_prepare_base, address, scratch)
        wheels = both.submit(_prepare_wheels)
        base.result()
        with _timed("image"), _in_build_context(wheels.result()) as folder:
            _make(address, f"WHEELS={folder}", f"BASE={BASE}", f"IMAGE={IMAGE}")


def _install() -> None:
    missing = [package for program, package in PACKAGES.items() if shutil.which(program) is None]
    if os.getuid() != 0:
        raise NoEngineError("only root can start dockerd")
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise NoEngineError(f"{', '.join(missing)} must be installed, and there is no apt-get")
    with _timed(f"apt-get install {' '.join(missing)}"):
        for command in (["update"], ["install", "--yes", "--no-install-recommends", *missing]):
            done = _run(["apt-get", "-q", *command], env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
            if done.returncode:
                raise NoEngineError(f"apt-get {' '.join(command)}: {done.stdout[-1000:]}")


def _wait_for(process: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    deadline = time.monotonic() + 60
    with _timed("dockerd"):
        while process.poll() is None and time.monotonic() < deadline:
            try:
                docker.DockerClient(address).ping()
            except DockerException:
                time.sleep(0.2)
            else:
                return
    raise NoEngineError(f"dockerd does not start:\n{log.read_text(errors='replace')[-2000:]}")


def _prepare_base(address: str, scratch: Path) -> None:
    """Pull the base image; if that fails, import Debian with its own Python."""
    client = docker.DockerClient(address)
    try:
        client.images.pull(*BASE.split(":"))
    except APIError as error:
        say(f"{BASE} cannot be pulled, using Debian's Python: {error.explanation}")
        repository, tag = BASE.split(":")
        change = ['CMD ["python"]', "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"]
        client.api.import_image_from_file(str(_debian_archive(scratch)), repository, tag, change)


def _debian_archive(scratch: Path) -> Path:
    """The archive of a small Debian with python3 and venv; `python` has the path of the official image."""
    archive, tree = CACHE / f"base-{_key(*_BASE_PACKAGES)}.tar", scratch / "base"
    if archive.exists():
        return archive
    with _timed("debootstrap"):
        include = f"--include={','.join(_BASE_PACKAGES)}"
        done = _run(["debootstrap", "--variant=minbase", include, "bookworm", str(tree)])
        if done.returncode:
            raise RuntimeError(f"debootstrap: {done.stdout[-2000:]}")
        for unused in (
            "var/cache/apt",
            "var/lib/apt/lists",
            *(f"usr/share/{name}" for name in ("doc", "locale", "man")),
        ):
            shutil.rmtree(tree / unused)
        (tree / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        CACHE.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive.with_suffix(".part"), "w") as out:
            out.add(tree, ".")
        archive.with_suffix(".part").rename(archive)
    return archive


def _prepare_wheels() -> Path:
    """A folder with the pinned wheels of the image and its build; torch is the one for CPUs."""
    pins, tools = "constraints.txt", "images/sbom-constraints.txt"
    sources = [(ROOT / name).read_text() for name in ("pyproject.toml", pins, tools)]
    folder = CACHE / f"wheels-{_key(*sources)}"
    if folder.exists():
        return folder
    index = re.search(r"TORCH_INDEX=(\S+)", (ROOT / "images/Dockerfile").read_text())
    assert index
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    with _timed("wheels"):
        for versions, *what in (
            [pins, "--no-deps", "--index-url", index[1], "--retries", "1", "torch"],
            [pins, "--no-deps", "pip", "setuptools"],
            [pins, "--find-links", str(part), "--only-deps", str(ROOT)],
            [tools, "cyclonedx-bom"],
        ):
            command = [sys.executable, "-m", "pip", "wheel", "--wheel-dir", str(part), "--constraint"]
            done = _run([*command, str(ROOT / versions), *what])
            if done.returncode:
                raise RuntimeError(f"pip wheel {' '.join(what)}: {done.stdout[-2000:]}")
        for old in CACHE.glob("wheels-*"):
            if old != part:
                shutil.rmtree(old)
        part.rename(folder)
    return folder


@contextmanager
def _in_build_context(wheels: Path) -> Iterator[str]:
    """Put the wheels where a build finds them, and yield the name of their folder there."""
    folder = ROOT / "build" / "wheels"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        for wheel in wheels.iterdir():
            try:
                (folder / wheel.name).hardlink_to(wheel)
            except OSError:  # another file system
                shutil.copyfile(wheel, folder / wheel.name)
        yield str(folder.relative_to(ROOT))
    finally:
        shutil.rmtree(folder)


def _make(address: str, *variables: str) -> None:
    environment = {**os.environ, "DOCKER_HOST": address, "DOCKER_BUILDKIT": "1"}
    # Debian's client uses BuildKit, which takes half the time, without a plugin.
    command = ["make", "image-cpu", "DOCKER=/usr/bin/docker", "BUILD_OPTIONS=--network=none", *variables]
    done = _run(command, env=environment, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"make image-cpu:\n{done.stdout[-4000:]}")


def _run(
    command: list[str], env: dict[str, str] | None = None, cwd: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    return subprocess.run(command, env=env, cwd=cwd, check=False, **output)  # type: ignore[call-overload, no-any-return]


def _key(*texts: str) -> str:
    return hashlib.sha256("\0".join((sys.version, *texts)).encode()).hexdigest()[:12]


@contextmanager
def _timed(what: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    say(f"{what}: {time.monotonic() - began:.0f} s")


def say(text: str) -> None:
    """Print at once: the tests run for minutes."""
    print(f"[containers] {text}", flush=True)
