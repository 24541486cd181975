"""Runs the containers of rendered manifests without a cluster or an image, as their pods would.

The processes are this machine's programs. Each gets exactly what the manifest gives its container: command,
arguments, environment, a user id without a name, no capabilities, a read-only root, and the mounted volumes
as the only writable folders. All share one network, in which the names of the Services lead to them. The
sandbox uses Linux namespaces through unshare(1) and setpriv(1), and needs no privileges.
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

_START_TIMEOUT_SECONDS = 120
_DROP_RIGHTS = ["setpriv", "--ambient-caps=-all", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]


def refusal() -> str | None:
    """Why this machine cannot make the namespaces; None if it can."""
    missing = [program for program in ("unshare", "setpriv") if shutil.which(program) is None]
    if missing:
        return f"{' and '.join(missing)} (util-linux) cannot be found"
    trial = subprocess.run(_unshare(1000, 1000, ["true"]), capture_output=True, text=True, check=False)
    return trial.stderr.strip() or "unshare fails" if trial.returncode else None


def run(spec: dict[str, Any], folder: Path) -> str:
    """Start the containers in order, each after the previous one is ready, and run a client beside them.

    Args:
        spec: `user`, `group`; `hosts`, the names of the containers; `containers`, each with `name`,
            `command`, `environment`, `folder` (its working directory), `mounts` (path -> folder or file) and
            `probes` (startup first); `client` with `command` and `environment`.
        folder: for logs.

    Returns:
        The output of the client.
    """
    (folder / "spec.json").write_text(json.dumps(spec))
    (folder / "root").mkdir()
    command = [sys.executable, __file__, "node", str(folder)]
    done = subprocess.run(
        _unshare(spec["user"], spec["group"], command),
        capture_output=True,
        text=True,
        check=False,
        timeout=3 * _START_TIMEOUT_SECONDS,
    )
    logs = "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in sorted(folder.glob("*.log")))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{logs}"
    return done.stdout


def _unshare(user: int, group: int, command: list[str]) -> list[str]:
    spaces = ["--user", f"--map-user={user}", f"--map-group={group}", "--keep-caps", "--mount", "--net"]
    return ["unshare", *spaces, "--pid", "--fork", "--kill-child", "--mount-proc", *command]


# The rest runs inside the sandbox: first the node, then one process a container.


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
    deadline = time.monotonic() + _START_TIMEOUT_SECONDS
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
        headers={"Host": f"10.244.0.7:{http['port']}"},  # the kubelet sends the pod's address
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
        target = root / entry.name
        if entry.is_symlink():
            target.symlink_to(entry.readlink())
        elif entry.is_dir():
            target.mkdir()
            _mount(str(entry), str(target), _BIND | _RECURSIVE)
            if entry.name not in ("dev", "proc", "sys"):
                _forbid_writing(target)
    for path, source in container["mounts"].items():
        _mount(source, str(_make_room(root, path)), _BIND)
    programs = root / sys.prefix.lstrip("/")
    if not programs.exists():  # a volume of the container hides the checkout, for example below /tmp
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
    """The mount point of what a container sees as `path`; makes it in memory if this machine lacks it."""
    target = root / os.path.realpath(path).lstrip("/")
    if not target.exists():
        parent = next(parent for parent in target.parents if parent.exists())
        if parent != root:
            _mount("tmpfs", str(parent), 0, "tmpfs")
        target.mkdir(parents=True)
        if parent != root:
            _mount("", str(parent), _REMOUNT | _READ_ONLY)
    return target


_READ_ONLY, _REMOUNT, _BIND, _RECURSIVE = 1, 32, 4096, 16384
_libc = ctypes.CDLL(None, use_errno=True)


def _mount(source: str, target: str, flags: int, kind: str = "") -> None:
    arguments = [source.encode() or None, target.encode(), kind.encode() or None, ctypes.c_ulong(flags), None]
    if _libc.mount(*arguments):
        raise OSError(ctypes.get_errno(), f"cannot mount {source} on {target}")


def _forbid_writing(path: Path) -> None:
    """Make a mount and those below it read-only by mount_setattr(2), which libc may lack."""
    working_folder, recursively, call = -100, 0x8000, 442
    attributes = struct.pack("QQQQ", 1, 0, 0, 0)
    if _libc.syscall(call, working_folder, str(path).encode(), recursively, attributes, len(attributes)):
        raise OSError(ctypes.get_errno(), f"cannot make {path} read-only")


def _raise_loopback() -> None:
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh", b"lo", 0x41))  # SIOCSIFFLAGS: up and running


if __name__ == "__main__":
    if sys.argv[1] == "node":
        raise SystemExit(_node(Path(sys.argv[2])))
    _container(Path(sys.argv[2]), int(sys.argv[3]))
