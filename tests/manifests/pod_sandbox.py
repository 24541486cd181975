"""Containers of rendered manifests run here without a cluster or an image, as their pods would run them.

The processes are this machine's own programs, but get what the manifest gives a container: its command and
arguments as they stand, its environment and nothing else, its user id (one without a name), no capabilities, a
read-only root, and of writable folders the mounted volumes only. All share a network of their own, in which the
names of the Services lead to them. Made of Linux namespaces, by unshare(1) and setpriv(1), without privilege.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

_PATIENCE = 120
_DROP_RIGHTS = ["setpriv", "--ambient-caps=-all", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]


def refusal() -> str | None:
    """Why this machine lets nobody make such namespaces; None where it does."""
    missing = [program for program in ("unshare", "setpriv") if shutil.which(program) is None]
    if missing:
        return f"{' and '.join(missing)} (util-linux) cannot be found"
    trial = subprocess.run(_unshare(1000, 1000, ["true"]), capture_output=True, text=True, check=False)
    return trial.stderr.strip() or "unshare fails" if trial.returncode else None


def run(spec: dict[str, Any], folder: Path) -> str:
    """Start the containers in order, each once the one before is up, and run a client beside them.

    Args:
        spec: `user`, `group`; `hosts`, names that lead to the containers; `containers`, each with `name`,
            `command`, `environment`, `folder` (its working directory), `mounts` (path -> folder or file) and
            `probes` (startup first); `client` with `command` and `environment`.
        folder: for logs.

    Returns:
        What the client printed.
    """
    (folder / "spec.json").write_text(json.dumps(spec))
    (folder / "root").mkdir()
    command = [sys.executable, __file__, "node", str(folder)]
    done = subprocess.run(
        _unshare(spec["user"], spec["group"], command),
        capture_output=True,
        text=True,
        check=False,
        timeout=3 * _PATIENCE,
    )
    logs = "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in sorted(folder.glob("*.log")))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{logs}"
    return done.stdout


def _unshare(user: int, group: int, command: list[str]) -> list[str]:
    spaces = ["--user", f"--map-user={user}", f"--map-group={group}", "--keep-caps", "--mount", "--net"]
    return ["unshare", *spaces, "--pid", "--fork", "--kill-child", "--mount-proc", *command]


# What follows runs inside: first the node, then a process a container.


def _node(folder: Path) -> int:
    spec = json.loads((folder / "spec.json").read_text())
    _raise_loopback()
    hosts = folder / "hosts"
    hosts.write_text(f"127.0.0.1 localhost {' '.join(spec['hosts'])}\n")
    _mount(str(hosts), "/etc/hosts", _BIND)
    for number, container in enumerate(spec["containers"]):
        with (folder / f"{container['name']}.log").open("wb") as log:
            process = subprocess.Popen(
                ["unshare", "--mount", sys.executable, __file__, "container", str(folder), str(number)],  # noqa: S607
                stdout=log,
                stderr=log,
            )
        for probe in container["probes"]:
            _wait_for(probe, container, process)
    client = spec["client"]
    return subprocess.run(client["command"], env=client["environment"], check=False).returncode


def _wait_for(probe: dict[str, Any], container: dict[str, Any], process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _PATIENCE
    while not _passes(probe, container["environment"]):
        if process.poll() is not None:
            raise SystemExit(f"{container['name']} ended with status {process.returncode}")
        if time.monotonic() > deadline:
            raise SystemExit(f"{container['name']} does not pass {probe}")
        time.sleep(0.2)


def _passes(probe: dict[str, Any], environment: dict[str, str]) -> bool:
    if "exec" in probe:
        command = probe["exec"]["command"]
        return subprocess.run(command, env=environment, stdout=sys.stderr, check=False).returncode == 0
    http = probe["httpGet"]
    request = urllib.request.Request(
        f"http://127.0.0.1:{http['port']}{http['path']}",
        headers={"Host": f"10.244.0.7:{http['port']}"},  # as the kubelet: the pod's address
    )
    try:
        with urllib.request.urlopen(request, timeout=probe["timeoutSeconds"]) as answer:  # noqa: S310
            return bool(200 <= answer.status < 400)
    except (urllib.error.URLError, OSError):
        return False


def _container(folder: Path, number: int) -> None:
    container = json.loads((folder / "spec.json").read_text())["containers"][number]
    root = folder / "root"
    _mount("tmpfs", str(root), 0, "tmpfs")
    for entry in Path("/").iterdir():
        here = root / entry.name
        if entry.is_symlink():
            here.symlink_to(entry.readlink())
        elif entry.is_dir():
            here.mkdir()
            _mount(str(entry), str(here), _BIND | _RECURSIVE)
            if entry.name not in ("dev", "proc", "sys"):
                _forbid_writing(here)
    for path, source in container["mounts"].items():
        _mount(source, str(_make_room(root, path)), _BIND)
    programs = root / sys.prefix.lstrip("/")
    if not programs.exists():  # the checkout lies where the container has a volume, as below /tmp
        programs.mkdir(parents=True)
        _mount(sys.prefix, str(programs), _BIND | _RECURSIVE)
        _forbid_writing(programs)
    _mount("", str(root), _REMOUNT | _READ_ONLY)
    os.chroot(root)
    os.chdir(container["folder"])
    for path in ("/", "/usr", "/etc", sys.prefix):
        with contextlib.suppress(OSError):
            (Path(path) / "written").touch()
            raise SystemExit(f"the root is not read-only: {path}")
    environment = container["environment"]
    os.execvpe(_DROP_RIGHTS[0], [*_DROP_RIGHTS, "--", *container["command"]], environment)  # noqa: S606


def _make_room(root: Path, path: str) -> Path:
    """Where to mount what a container sees as `path`; what is missing on this machine is made, in memory."""
    here = root / os.path.realpath(path).lstrip("/")
    if not here.exists():
        there = next(parent for parent in here.parents if parent.exists())
        if there != root:
            _mount("tmpfs", str(there), 0, "tmpfs")
        here.mkdir(parents=True)
        if there != root:
            _mount("", str(there), _REMOUNT | _READ_ONLY)
    return here


_READ_ONLY, _REMOUNT, _BIND, _RECURSIVE = 1, 32, 4096, 16384
_libc = ctypes.CDLL(None, use_errno=True)


def _mount(source: str, target: str, flags: int, kind: str = "") -> None:
    arguments = [source.encode() or None, target.encode(), kind.encode() or None, ctypes.c_ulong(flags), None]
    if _libc.mount(*arguments):
        raise OSError(ctypes.get_errno(), f"cannot mount {source} on {target}")


def _forbid_writing(path: Path) -> None:
    """Make a mount and those below it read-only: mount_setattr(2), which the libc need not know."""
    here, recursively, call = -100, 0x8000, 442
    attributes = struct.pack("QQQQ", 1, 0, 0, 0)
    if _libc.syscall(call, here, str(path).encode(), recursively, attributes, len(attributes)):
        raise OSError(ctypes.get_errno(), f"cannot make {path} read-only")


def _raise_loopback() -> None:
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh", b"lo", 0x41))  # SIOCSIFFLAGS: up and running


if __name__ == "__main__":
    if sys.argv[1] == "node":
        raise SystemExit(_node(Path(sys.argv[2])))
    _container(Path(sys.argv[2]), int(sys.argv[3]))
