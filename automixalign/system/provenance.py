"""What determines a result besides a stage's inputs and settings: code, versions, environment.

Each stage's settings hold digests of them, so no cached result is used after a change.
"""

import ast
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import NamedTuple

from automixalign.system.processors import available_processors

_PACKAGE = Path(__file__).parents[1]
_SOURCES = (".py", ".html", ".css", ".js")
_NUMERIC = (
    *("ATEN_", "CUBLAS_", "CUDA_", "DNNL_", "KMP_", "MKL_", "NVIDIA_TF32_OVERRIDE"),
    *("OMP_", "ONEDNN_", "OPENBLAS_", "PYTORCH_", "TORCH_"),
)
"""Prefixes of environment variables that change how numbers are computed."""
_CONTENT = ("HF_ENDPOINT",)
"""Variables that change which content a name refers to."""
_MEMORY_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),  # cgroup v1
)
"""Of a container."""
_OPTIONAL = ("bitsandbytes", "flash-attn")
"""Packages that change numbers, if they are installed."""
_NAME = re.compile(r"[A-Za-z0-9._-]+")


@cache
def library_digest() -> str:
    """SHA-256 of the source files of the whole package."""
    total = hashlib.sha256()
    for file in sorted(file for file in _PACKAGE.rglob("*") if file.suffix in _SOURCES):
        total.update(file.relative_to(_PACKAGE).as_posix().encode() + b"\0" + file.read_bytes())
    return total.hexdigest()[:16]


def code_digest(modules: Iterable[str]) -> str:
    """SHA-256 of modules and of all that they import, directly or not, from this package and from their own.

    Comments, formatting and docstrings do not count, those of attributes included. The `assets/` of a package
    count where one of its modules does.

    Args:
        modules: names, also of modules outside this package. `PACKAGE.*` means every module of a package of
            this project, such as one whose registry finds its modules by itself.

    Raises:
        ModuleNotFoundError: a module has no source file.
    """
    total = hashlib.sha256()
    for name in sorted(imported_modules(modules)):
        total.update(f"{name} {_parse(name).digest}\n".encode())
    return total.hexdigest()[:16]


def imported_modules(modules: Iterable[str]) -> frozenset[str]:
    """The modules that run when `modules` and their functions run; see `code_digest`."""
    reached: set[str] = set()
    waiting = [name for module in modules for name in _expand(module)]
    while waiting:
        name = waiting.pop()
        if name and name not in reached:
            reached.add(name)
            waiting += [name.rpartition(".")[0], *_parse(name).imports]
    return frozenset(reached)


class _Module(NamedTuple):
    digest: str
    imports: frozenset[str]


@cache
def _parse(name: str) -> _Module:
    path = _path(name)
    if path is None:
        raise ModuleNotFoundError(f"there is no source file of the module {name}")
    tree = ast.parse(path.read_bytes())
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    imports = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            imports |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
        for field in ("body", "orelse", "finalbody"):
            if isinstance(statements := getattr(node, field, None), list):
                setattr(node, field, [each for each in statements if not _is_docstring(each)])
    digest = hashlib.sha256(ast.dump(tree).encode())
    if path.name == "__init__.py":
        for file in sorted(path.parent.glob("assets/*")):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    followed = (_PACKAGE.name, name.partition(".")[0])
    return _Module(
        digest.hexdigest(),
        frozenset(each for each in imports if each.partition(".")[0] in followed and _path(each)),
    )


def _is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _path(name: str) -> Path | None:
    """The source file of a module; None if it has none."""
    top = name.partition(".")[0]
    folder = _PACKAGE.parent if top == _PACKAGE.name else _folder_of(top)
    if folder is None:
        return None
    path = folder / name.replace(".", "/")
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


@cache
def _folder_of(top: str) -> Path | None:
    """The folder of a module or package that is not in another one."""
    spec = find_spec(top)
    if spec is None:
        return None
    file = next(iter(spec.submodule_search_locations or [spec.origin or ""]))
    return Path(file).parent


def _expand(module: str) -> list[str]:
    package = module.removesuffix(".*")
    if package == module:
        return [module]
    folder = _PACKAGE.parent / package.replace(".", "/")
    return [package, *(f"{package}.{file.stem}" for file in folder.glob("*.py") if file.stem != "__init__")]


@cache
def git_commit() -> str:
    """The git commit of this code; empty if it is neither a checkout nor in an image that names its commit."""
    if commit := os.environ.get("AMA_COMMIT"):
        return commit
    if (git := shutil.which("git")) is None:
        return ""
    command = [git, "-C", str(_PACKAGE), "rev-parse", "--verify", "--quiet", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


@cache
def machine() -> str:
    """What this process may use of its machine: `2 processors, 15.6 GiB of memory, no accelerator`."""
    import torch

    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit in _MEMORY_LIMITS:
        if limit.is_file() and (text := limit.read_text().strip()).isdecimal():
            memory = min(memory, int(text))
    names = Counter(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
    accelerators = ", ".join(f"{count} x {name}" for name, count in names.items()) or "no accelerator"
    return f"{available_processors()} processors, {memory / 2**30:.1f} GiB of memory, {accelerators}"


@cache
def versions() -> dict[str, str]:
    """The versions of Python, of what this project requires, and of optional packages that compute numbers."""
    installed = {"python": platform.python_version(), "machine": platform.machine()}
    for package in _OPTIONAL:
        with suppress(metadata.PackageNotFoundError):
            installed[package] = metadata.version(package)
    for requirement in metadata.requires("automixalign") or []:
        name = _NAME.match(requirement)
        if name and "extra ==" not in requirement:
            installed[name[0]] = metadata.version(name[0])
    return installed


def environment_digest(environ: Mapping[str, str] = os.environ) -> str:
    """SHA-256 of the versions and of the environment variables that can change a result.

    A local run sets `OMP_NUM_THREADS` by the number of processors, so that number counts, too.
    """
    relevant = {name: value for name, value in environ.items() if name.startswith((*_NUMERIC, *_CONTENT))}
    text = json.dumps([versions(), relevant], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
