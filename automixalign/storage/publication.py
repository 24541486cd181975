"""Publish artifacts to a folder or an `s3://` prefix, and copy publications back.

    manifest.json     every file with size and SHA-256, and the run that published it
    NAME, NAME/...    the artifacts

A folder is renamed into place whole. Below a prefix, publishing removes the manifest first and writes it last:
without a manifest there is no publication. Meanwhile `unfinished.json` lists the files to come. It tells them
from foreign files, so that a second call can complete an interrupted publication. Hidden files are not
published.
"""

import hashlib
import json
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePath, PurePosixPath
from typing import Annotated, Literal, NamedTuple, Self, TypeVar

from pydantic import StringConstraints, ValidationError, model_validator

from automixalign.storage import files, s3
from automixalign.system.errors import StorageError
from automixalign.system.schema import Natural, Schema, describe

MANIFEST = "manifest.json"
UNFINISHED = "unfinished.json"
MAX_LISTED_FILES = 5
"""Files that a message lists."""

_Document = TypeVar("_Document", bound=Schema)


class PublishedFile(Schema):
    """Size and digest of a published file."""

    size: Natural
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


class Manifest(Schema):
    """The files of a publication."""

    version: Literal[1] = 1
    run: str = ""
    """The run that published the files."""
    files: dict[str, PublishedFile]
    """By their names below the publication, with `/` between the parts."""

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for name in self.files:
            if fault := _name_fault(name):
                raise ValueError(fault)
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the files' names and digests: equal for equal content, wherever it is published."""
        lines = "".join(f"{self.files[name].sha256} {name}\n" for name in sorted(self.files))
        return hashlib.sha256(lines.encode()).hexdigest()


class _Unfinished(Schema):
    """The files that may exist below a prefix while it has no manifest."""

    files: list[str]


class _LocalFile(NamedTuple):
    """A file to publish."""

    path: Path
    modified_ns: int
    entry: PublishedFile


def publish(
    artifacts: Mapping[str, Path],
    destination: str,
    *,
    run: str = "",
    replace: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Manifest:
    """Copy files and folders below an `s3://` prefix or into a folder, each under its name.

    Files that the destination already holds are not copied again. A second call completes an interrupted
    publication; if nothing has changed, it keeps the manifest, with the run that published first.

    Args:
        artifacts: name (`models/ama-r`) -> local file or folder.
        destination: `s3://bucket/prefix` or a folder, for this publication only.
        run: the run that made the artifacts, for the manifest.
        replace: whether to replace a publication of other content.
        progress: called with the number of bytes that were copied since the last call, from any thread.

    Raises:
        StorageError: an artifact is missing or changes meanwhile; the destination holds another publication or
            foreign files, or cannot be written.
    """
    try:
        local = _collect(artifacts)
        manifest = Manifest(run=run, files={name: file.entry for name, file in local.items()})
        store = _open(destination)
        if isinstance(store, s3.Prefix):
            return _publish_to_prefix(local, manifest, store, replace, progress)
        return _publish_to_folder(local, manifest, store, replace, progress)
    except OSError as error:
        raise StorageError(f"{destination} cannot be written: {error}") from error


def fetch(source: str, folder: Path) -> Manifest:
    """Copy a publication with its manifest to `folder`, which appears only if every file is as published.

    Raises:
        StorageError: there is no manifest; files are missing, changed or not in the manifest (the message names
            them); the source cannot be read; or `folder` is not empty.
    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise StorageError(f"{folder} exists and is not an empty folder; name a new folder")
        store = _open(source)
        manifest = _checked_manifest(source, store)
        with files.replacing(folder) as temporary:
            for name, entry in manifest.files.items():
                store.fetch(name, temporary / name, entry.sha256)
            files.write_text(temporary / MANIFEST, _as_text(manifest))
    except OSError as error:
        raise StorageError(f"{source} cannot be copied to {folder}: {error}") from error
    return manifest


def check_free(destination: str, replace: bool, run: str | None = None) -> None:
    """Check before any work that `publish` will find no other publication and no foreign files.

    Args:
        destination: as for `publish`.
        replace: whether another publication may be there.
        run: the run that will publish; its own earlier publication may be there.

    Raises:
        StorageError: there are such files, or the destination cannot be read.
    """
    try:
        store = _open(destination)
        if isinstance(store, _Folder):
            store.check()
        old = _read_document(store, MANIFEST, Manifest)
        unfinished = _read_document(store, UNFINISHED, _Unfinished) if isinstance(store, s3.Prefix) else None
        sizes = _visible(store.sizes()) if isinstance(store, s3.Prefix) else store.sizes()
        own = {*(old.files if old else ()), *(unfinished.files if unfinished else ())}
        replace = replace or (old is not None and old.run == run)
        _check_destination(store.uri(), old, None, foreign=_foreign(sizes, own), replace=replace)
    except OSError as error:
        raise StorageError(f"{destination} cannot be read: {error}") from error


def check_writable(destination: str) -> None:
    """Write a small object or file at a publication's destination, read it and delete it.

    Raises:
        StorageError: this fails; the message says why.
    """
    store = _open(destination)
    if isinstance(store, s3.Prefix):
        token = uuid.uuid4().hex
        name = f".writable-{token}"
        store.write(name, token.encode())
        if store.read(name) != token.encode():  # a proxy or a web page accepts every request
            raise StorageError(
                f"{store.uri(name)} was written but cannot be read back: check that AWS_ENDPOINT_URL is the "
                "address of an S3 server"
            )
        store.delete(name)
        return
    try:
        # Publishing writes a sibling first, so the closest existing parent must be writable.
        parent = next(parent for parent in store.path.parents if parent.exists())
        with tempfile.NamedTemporaryFile(prefix=".writable-", dir=parent):
            store.check()
    except OSError as error:
        raise StorageError(f"{destination} cannot be written: {error}; name another folder") from error


class _Folder:
    """A folder with those methods of `s3.Prefix` that read."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def check(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise StorageError(f"{self.path} is not a folder; name another place")

    def uri(self, name: str = "") -> str:
        return str(self.path / name)

    def sizes(self) -> dict[str, int]:
        paths = files.list_files(self.path, hidden=True)
        return {path.relative_to(self.path).as_posix(): path.stat().st_size for path in paths}

    def read(self, name: str) -> bytes | None:
        path = self.path / name
        return path.read_bytes() if path.is_file() else None

    def holds(self, name: str, size: int, sha256: str) -> bool:
        path = self.path / name
        return path.is_file() and path.stat().st_size == size and files.digest(path) == sha256

    def fetch(self, name: str, target: Path, sha256: str) -> None:
        _copy(self.path / name, target, sha256)


def _open(uri: str) -> s3.Prefix | _Folder:
    if s3.is_uri(uri):
        return s3.Prefix(uri)
    if not uri or "://" in uri:
        raise StorageError(f"{uri!r} is neither s3://bucket/prefix nor a folder")
    return _Folder(Path(uri))


def _publish_to_prefix(
    local: Mapping[str, _LocalFile],
    manifest: Manifest,
    store: s3.Prefix,
    replace: bool,
    progress: Callable[[int], None],
) -> Manifest:
    old = _read_document(store, MANIFEST, Manifest)
    unfinished = _read_document(store, UNFINISHED, _Unfinished)
    present = _visible(store.sizes())
    own = {*(old.files if old else ()), *(unfinished.files if unfinished else ())}
    _check_destination(store.uri(), old, manifest, foreign=_foreign(present, own), replace=replace)
    missing = [
        name
        for name, entry in manifest.files.items()
        if present.get(name) != entry.size or not store.holds(name, entry.size, entry.sha256)
    ]
    stale = _foreign(present, manifest.files)
    if old and old.files == manifest.files and not missing and not stale:
        if UNFINISHED in present:
            store.delete(UNFINISHED)
        return old
    store.write(UNFINISHED, _as_text(_Unfinished(files=sorted({*own, *manifest.files}))).encode())
    store.delete(MANIFEST)
    for name in missing:
        file = local[name]
        store.upload(name, file.path, file.entry.size, file.entry.sha256, progress)
    for name in sorted(stale):
        store.delete(name)
    for file in local.values():
        status = file.path.stat()
        if (status.st_size, status.st_mtime_ns) != (file.entry.size, file.modified_ns):
            raise StorageError(f"{file.path} was changed while it was published; publish again")
    store.write(MANIFEST, _as_text(manifest).encode())
    store.delete(UNFINISHED)
    return manifest


def _publish_to_folder(
    local: Mapping[str, _LocalFile],
    manifest: Manifest,
    store: _Folder,
    replace: bool,
    progress: Callable[[int], None],
) -> Manifest:
    store.check()
    old = _read_document(store, MANIFEST, Manifest)
    foreign = _foreign(store.sizes(), old.files if old else ())
    _check_destination(store.uri(), old, manifest, foreign=foreign, replace=replace)
    whole = old and all(store.holds(name, entry.size, entry.sha256) for name, entry in old.files.items())
    if old and whole and old.files == manifest.files:
        return old
    with files.replacing(store.path) as temporary:
        for name, file in local.items():
            _copy(file.path, temporary / name, file.entry.sha256)
            progress(file.entry.size)
        files.write_text(temporary / MANIFEST, _as_text(manifest))
        if store.path.exists():  # renamed as a whole, so that no reader finds half of it
            store.path.rename(temporary.with_name(".replaced"))
    return manifest


def _check_destination(
    uri: str, old: Manifest | None, new: Manifest | None, foreign: Iterable[str], replace: bool
) -> None:
    if old and (new is None or old.files != new.files) and not replace:
        raise StorageError(_occupied(uri, old))
    _check_no_foreign(uri, foreign)


def _occupied(uri: str, old: Manifest) -> str:
    return (
        f"{uri} holds another publication, {old.run!r}; name another place, or replace it "
        "(--replace of the command, or output.replace=true in the configuration)"
    )


def _check_no_foreign(uri: str, foreign: Iterable[str]) -> None:
    if foreign := sorted(foreign):
        raise StorageError(f"{uri} holds files of no publication: {_shorten(foreign)}; name an empty place")


def _collect(artifacts: Mapping[str, Path]) -> dict[str, _LocalFile]:
    """List every file of the artifacts by the name that it is published under."""
    local: dict[str, _LocalFile] = {}
    for artifact, path in artifacts.items():
        paths = [path] if path.is_file() else files.list_files(path)
        if not paths:
            raise StorageError(f"the artifact {artifact} cannot be published: {path} holds no file")
        for file in paths:
            name = (PurePosixPath(artifact) / file.relative_to(path).as_posix()).as_posix()
            if name in local:
                raise StorageError(f"two artifacts have a file {name}")
            status = file.stat()
            entry = PublishedFile(size=status.st_size, sha256=files.digest(file))
            local[name] = _LocalFile(file, status.st_mtime_ns, entry)
    if not local:
        raise StorageError("there is nothing to publish: no artifact is named")
    for name in local:
        if (fault := _name_fault(name)) or name in (MANIFEST, UNFINISHED):
            raise StorageError(fault or f"no artifact may be called {name}")
        if parents := local.keys() & {parent.as_posix() for parent in PurePosixPath(name).parents}:
            raise StorageError(f"{parents.pop()} cannot be both a file and the folder of {name}")
    return local


def _name_fault(name: str) -> str | None:
    """Why a published file cannot have this name; None if it can."""
    path = PurePosixPath(name)
    # `..` is hidden too.
    if path.parts and not path.is_absolute() and path.as_posix() == name and not _is_hidden(path):
        return None
    return f"{name!r} is no name of a file below a publication"


def _is_hidden(path: PurePath) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _checked_manifest(source: str, store: s3.Prefix | _Folder) -> Manifest:
    """Read the manifest of a publication and check the names and sizes of its files."""
    manifest, present = _read_document(store, MANIFEST, Manifest), _visible(store.sizes())
    if manifest is None:
        advice = "it was not finished: publish it again" if UNFINISHED in present else "check the place"
        raise StorageError(f"{source} is no publication, because it has no {MANIFEST}; {advice}")
    faults = [f"{name} is not in its manifest" for name in sorted(_foreign(present, manifest.files))]
    for name, entry in manifest.files.items():
        if name not in present:
            faults.append(f"{name} is missing")
        elif present[name] != entry.size:
            faults.append(f"{name} has {present[name]} bytes, not {entry.size}")
    if faults:
        raise StorageError(
            f"{source} is not as it was published: {_shorten(faults)}; publish it again, without foreign files"
        )
    return manifest


def _copy(source: Path, target: Path, sha256: str) -> None:
    with files.replacing(target) as temporary:
        shutil.copyfile(source, temporary)
        if files.digest(temporary) != sha256:
            raise StorageError(
                f"{source} is not what was published: its SHA-256 is not {sha256}; publish again"
            )


def _read_document(store: s3.Prefix | _Folder, name: str, kind: type[_Document]) -> _Document | None:
    text = store.read(name)
    try:
        return None if text is None else kind.model_validate_json(text)
    except ValidationError as error:
        problem = f"{store.uri(name)} is not part of a publication: {describe(error)}"
        raise StorageError(f"{problem}; name another place") from error


def _as_text(document: Schema) -> str:
    return json.dumps(document.model_dump(), indent=2, ensure_ascii=False) + "\n"


def _visible(sizes: Mapping[str, int]) -> dict[str, int]:
    return {name: size for name, size in sizes.items() if not _is_hidden(PurePosixPath(name))}


def _foreign(present: Iterable[str], own: Iterable[str]) -> set[str]:
    return set(present) - set(own) - {MANIFEST, UNFINISHED}


def _shorten(names: list[str]) -> str:
    more = f" and {len(names) - MAX_LISTED_FILES} more" if len(names) > MAX_LISTED_FILES else ""
    return ", ".join(names[:MAX_LISTED_FILES]) + more
