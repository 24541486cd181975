"""A container engine of the tests' own, with the image built in it: Debian's dockerd, on a socket of its own.

Nothing of it reaches beyond its folder: it makes no network and no firewall rule, and ends with its containers.
What takes long to fetch is kept in the user's cache folder: the wheels, and a stand-in for the base image that
debootstrap makes where no registry can be reached.
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
"""Program -> Debian's package of it."""
_INSIDE = ("python3", "python3-venv", "ca-certificates")


class NoEngineError(Exception):
    """No container engine can be had here, and why."""


@contextmanager
def engine(folder: Path) -> Iterator[str]:
    """Run dockerd in `folder` (a short path: sockets have short names); yield its address.

    Raises:
        NoEngineError: it cannot be installed or does not come up.
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
    """Undo the mounts that dockerd leaves behind: the name of its own network, as a rule."""
    places = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for place in sorted((place for place in places if Path(place).is_relative_to(folder)), reverse=True):
        subprocess.run(["umount", place], check=True)  # noqa: S607


def build(address: str, scratch: Path) -> None:
    """Build the image `IMAGE` by `make`, without a network, on a base that is pulled or made.

    Args:
        address: of the engine.
        scratch: an empty folder.
    """
    if sys.version_info[:2] != (3, 11):
        raise RuntimeError("the wheels are this Python's, which must be the image's: 3.11")
    with ThreadPoolExecutor() as both:
        base = both.submit(_see_base, address, scratch)
        wheels = both.submit(_see_wheels)
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
            done = _run(
                ["apt-get", "--quiet", *command], env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            )
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
    raise NoEngineError(f"dockerd does not come up:\n{log.read_text(errors='replace')[-2000:]}")


def _see_base(address: str, scratch: Path) -> None:
    """Pull the base image; else import Debian with its Python, which stands in for it."""
    client = docker.DockerClient(address)
    try:
        client.images.pull(*BASE.split(":"))
    except APIError as error:
        say(f"{BASE} cannot be pulled, Debian's own Python stands in for it: {error.explanation}")
        repository, tag = BASE.split(":")
        change = ['CMD ["python"]', "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"]
        client.api.import_image_from_file(str(_stand_in(scratch)), repository, tag, change)


def _stand_in(scratch: Path) -> Path:
    """The archive of a small Debian with python3 and venv, `python` as the official image calls it."""
    archive, tree = CACHE / f"base-{_key(*_INSIDE)}.tar", scratch / "base"
    if archive.exists():
        return archive
    with _timed("debootstrap"):
        include = f"--include={','.join(_INSIDE)}"
        done = _run(["debootstrap", "--variant=minbase", include, "bookworm", str(tree)])
        if done.returncode:
            raise RuntimeError(f"debootstrap: {done.stdout[-2000:]}")
        for litter in (
            "var/cache/apt",
            "var/lib/apt/lists",
            "usr/share/doc",
            "usr/share/locale",
            "usr/share/man",
        ):
            shutil.rmtree(tree / litter)
        (tree / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        CACHE.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive.with_suffix(".part"), "w") as out:
            out.add(tree, ".")
        archive.with_suffix(".part").rename(archive)
    return archive


def _see_wheels() -> Path:
    """A folder with the wheels of all in the image and its build, in their pinned versions, torch for CPUs."""
    pins, tools = "constraints.txt", "images/sbom-constraints.txt"
    asked = [(ROOT / name).read_text() for name in ("pyproject.toml", pins, tools)]
    folder = CACHE / f"wheels-{_key(*asked)}"
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
    """Have the wheels where a build sees them; yield the folder's name there."""
    place = ROOT / "build" / "wheels"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        for wheel in wheels.iterdir():
            try:
                (place / wheel.name).hardlink_to(wheel)
            except OSError:  # another file system
                shutil.copyfile(wheel, place / wheel.name)
        yield str(place.relative_to(ROOT))
    finally:
        shutil.rmtree(place)


def _make(address: str, *variables: str) -> None:
    environment = {**os.environ, "DOCKER_HOST": address, "DOCKER_BUILDKIT": "1"}
    # Debian's client speaks to BuildKit, which takes half the time, by itself; others need a plugin for it.
    command = ["make", "image-cpu", "DOCKER=/usr/bin/docker", "BUILD_OPTIONS=--network=none", *variables]
    done = _run(command, env=environment, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"make image-cpu:\n{done.stdout[-4000:]}")


def _run(
    command: list[str], env: dict[str, str] | None = None, cwd: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        env=env,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )


def _key(*texts: str) -> str:
    return hashlib.sha256("\0".join((sys.version, *texts)).encode()).hexdigest()[:12]


@contextmanager
def _timed(what: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    say(f"{what}: {time.monotonic() - began:.0f} s")


def say(text: str) -> None:
    """Tell something at once; the stage runs for minutes."""
    print(f"[containers] {text}", flush=True)
