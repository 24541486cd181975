"""Publications: files and folders copied to a place that others read, an `s3://` prefix or a folder.

    manifest.json     every file with size and SHA-256, and the run it came from
    NAME, NAME/...    the artifacts

The manifest is written last, and removed first before anything is replaced: what has no manifest is no
publication. While one is being written below a prefix, `unfinished.json` lists the files that are on the way,
so that a publication that was interrupted can be told from files of somebody else and be completed; a folder
is put in its place whole. Hidden files are not published.
"""

import hashlib
import json
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath, PurePosixPath
from typing import Annotated, Literal, NamedTuple, Self, TypeVar

from pydantic import StringConstraints, ValidationError, model_validator

from automixalign.storage import files, s3
from automixalign.system.errors import StorageError
from automixalign.system.schema import Natural, Schema, describe

MANIFEST = "manifest.json"
UNFINISHED = "unfinished.json"
_Document = TypeVar("_Document", bound=Schema)

_NAMED = 5
"""So many files are named in a message."""


class PublishedFile(Schema):
    """What a file must be to be the one that was published."""

    size: Natural
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


class Manifest(Schema):
    """What a publication consists of."""

    version: Literal[1] = 1
    run: str = ""
    """The run whose artifacts these are."""
    files: dict[str, PublishedFile]
    """By their names below the publication, with `/` between the parts."""

    @model_validator(mode="after")
    def _names_stay_below(self) -> Self:
        for name in self.files:
            if fault := _fault(name):
                raise ValueError(fault)
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the files' names and digests: the same for the same content, wherever it lies."""
        lines = "".join(f"{self.files[name].sha256} {name}\n" for name in sorted(self.files))
        return hashlib.sha256(lines.encode()).hexdigest()


class _Unfinished(Schema):
    """What may lie below a prefix without a manifest that names it."""

    files: list[str]


class _Local(NamedTuple):
    """A file to be published."""

    path: Path
    modified: int
    entry: PublishedFile


def publish(
    artifacts: Mapping[str, Path], destination: str, *, run: str = "", replace: bool = False
) -> Manifest:
    """Copy files and folders below an `s3://` prefix or into a folder, each under its name.

    What is there already with the same content is not copied again, so that an interrupted publication is
    completed by a second call, and an unchanged one costs a look at every object. The manifest then stays as
    it is, with the run that published first.

    Args:
        artifacts: name (`models/ama-r`) -> local file or folder.
        destination: `s3://bucket/prefix` or a folder; all of it belongs to this publication.
        run: the run that the artifacts come from, for the manifest.
        replace: whether a publication of other content may be replaced.

    Raises:
        StorageError: an artifact is missing or changes meanwhile, the destination holds another publication or
            files of somebody else, or cannot be written.
    """
    try:
        local = _collect(artifacts)
        wanted = Manifest(run=run, files={name: file.entry for name, file in local.items()})
        store = _open(destination)
        if isinstance(store, s3.Prefix):
            return _publish_to_prefix(local, wanted, store, replace)
        return _publish_to_folder(local, wanted, store, replace)
    except OSError as error:
        raise StorageError(f"{destination} cannot be written: {error}") from error


def fetch(source: str, folder: Path) -> Manifest:
    """Copy a publication, with its manifest, to `folder`, which appears only if every file is as published.

    Raises:
        StorageError: there is no manifest, files are missing, others or further ones (they are named), the
            source cannot be read, or `folder` holds something.
    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise StorageError(f"{folder} holds something already; name a new folder")
        store = _open(source)
        manifest = _whole_manifest(source, store)
        with files.replacing(folder) as temporary:
            for name, entry in manifest.files.items():
                store.fetch(name, temporary / name, entry.sha256)
            files.write_text(temporary / MANIFEST, _as_text(manifest))
    except OSError as error:
        raise StorageError(f"{source} cannot be copied to {folder}: {error}") from error
    return manifest


def check_writable(destination: str) -> None:
    """Write a small object or file where a publication is to go, read it back and delete it again.

    Raises:
        StorageError: that cannot be done, and why.
    """
    store = _open(destination)
    if isinstance(store, s3.Prefix):
        token = uuid.uuid4().hex
        name = f".writable-{token}"
        store.write(name, token.encode())
        if store.read(name) != token.encode():  # a proxy or a web page that says yes to everything
            raise StorageError(
                f"{store.uri(name)} was written but is not read back: see that AWS_ENDPOINT_URL is an S3 "
                "server's address"
            )
        store.delete(name)
        return
    try:
        # It is written beside its place, in the first folder above that there is.
        above = next(place for place in store.path.parents if place.exists())
        with tempfile.NamedTemporaryFile(prefix=".writable-", dir=above):
            store.check()
    except OSError as error:
        raise StorageError(f"{destination} cannot be written: {error}; name another folder") from error


class _Folder:
    """A folder with the methods of `s3.Prefix` that a reader needs."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def check(self) -> None:
        """Refuse what is there but is no folder."""
        if self.path.exists() and not self.path.is_dir():
            raise StorageError(f"{self.path} is no folder; name another place")

    def uri(self, name: str = "") -> str:
        return str(self.path / name)

    def sizes(self) -> dict[str, int]:
        return {
            file.relative_to(self.path).as_posix(): file.stat().st_size
            for file in self.path.rglob("*")
            if file.is_file()
        }

    def read(self, name: str) -> bytes | None:
        place = self.path / name
        return place.read_bytes() if place.is_file() else None

    def holds(self, name: str, size: int, sha256: str) -> bool:
        place = self.path / name
        return place.is_file() and place.stat().st_size == size and files.digest(place) == sha256

    def fetch(self, name: str, target: Path, sha256: str) -> None:
        _copy(self.path / name, target, sha256)


def _open(place: str) -> s3.Prefix | _Folder:
    if s3.is_uri(place):
        return s3.Prefix(place)
    if not place or "://" in place:
        raise StorageError(f"{place!r} is neither s3://bucket/prefix nor a folder")
    return _Folder(Path(place))


def _publish_to_prefix(
    local: Mapping[str, _Local], wanted: Manifest, store: s3.Prefix, replace: bool
) -> Manifest:
    old = _read_manifest(store)
    present = _visible(store.sizes())
    ours = {*(old.files if old else ()), *_read_unfinished(store)}
    _check_place(store.uri(), old, wanted, _foreign(present, ours), replace)
    missing = [
        name
        for name, entry in wanted.files.items()
        if present.get(name) != entry.size or not store.holds(name, entry.size, entry.sha256)
    ]
    stale = _foreign(present, wanted.files)
    if old and old.files == wanted.files and not missing and not stale:
        if UNFINISHED in present:
            store.delete(UNFINISHED)
        return old
    store.write(UNFINISHED, _as_text(_Unfinished(files=sorted({*ours, *wanted.files}))).encode())
    store.delete(MANIFEST)
    for name in missing:
        file = local[name]
        store.upload(name, file.path, file.entry.size, file.entry.sha256)
    for name in sorted(stale):
        store.delete(name)
    _check_unchanged(local.values())
    store.write(MANIFEST, _as_text(wanted).encode())
    store.delete(UNFINISHED)
    return wanted


def _publish_to_folder(
    local: Mapping[str, _Local], wanted: Manifest, store: _Folder, replace: bool
) -> Manifest:
    store.check()
    old = _read_manifest(store)
    _check_place(store.uri(), old, wanted, _foreign(store.sizes(), old.files if old else ()), replace)
    whole = old and all(store.holds(name, entry.size, entry.sha256) for name, entry in old.files.items())
    if old and whole and old.files == wanted.files:
        return old
    with files.replacing(store.path) as temporary:
        for name, file in local.items():
            _copy(file.path, temporary / name, file.entry.sha256)
        files.write_text(temporary / MANIFEST, _as_text(wanted))
        if store.path.exists():  # moved aside whole: no reader finds half of it
            store.path.rename(temporary.with_name(".replaced"))
    return wanted


def _check_place(
    place: str, old: Manifest | None, wanted: Manifest, foreign: Iterable[str], replace: bool
) -> None:
    if old and old.files != wanted.files and not replace:
        raise StorageError(
            f"{place} holds another publication, of the run {old.run!r}; name another place, or replace it"
        )
    if foreign := sorted(foreign):
        raise StorageError(f"{place} holds files of no publication: {_some(foreign)}; name an empty place")


def _collect(artifacts: Mapping[str, Path]) -> dict[str, _Local]:
    """Every file of the artifacts, by the name it is published under."""
    found: dict[str, _Local] = {}
    for artifact, path in artifacts.items():
        paths = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
        inside = [file for file in paths if not _is_hidden(file.relative_to(path))]
        if not inside:
            raise StorageError(f"the artifact {artifact} cannot be published: {path} holds no file")
        for file in inside:
            name = (PurePosixPath(artifact) / file.relative_to(path).as_posix()).as_posix()
            if name in found:
                raise StorageError(f"two artifacts have a file {name}")
            facts = file.stat()
            entry = PublishedFile(size=facts.st_size, sha256=files.digest(file))
            found[name] = _Local(file, facts.st_mtime_ns, entry)
    if not found:
        raise StorageError("there is nothing to publish: no artifact is named")
    for name in found:
        if (fault := _fault(name)) or name in (MANIFEST, UNFINISHED):
            raise StorageError(fault or f"no artifact may be called {name}")
        if blocked := found.keys() & {parent.as_posix() for parent in PurePosixPath(name).parents}:
            raise StorageError(f"{blocked.pop()} cannot be both a file and the folder of {name}")
    return found


def _fault(name: str) -> str:
    """What is wrong with the name of a published file, empty if nothing is."""
    path = PurePosixPath(name)
    bad = (
        not path.parts or path.is_absolute() or path.as_posix() != name or _is_hidden(path)
    )  # `..` begins with a dot, too
    return f"{name!r} is no name of a file below a publication" if bad else ""


def _is_hidden(path: PurePath) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _whole_manifest(source: str, store: s3.Prefix | _Folder) -> Manifest:
    """The manifest of a publication whose files are all there, as far as their names and sizes show."""
    manifest, present = _read_manifest(store), _visible(store.sizes())
    if manifest is None:
        advice = "it was not finished: publish it again" if UNFINISHED in present else "check the place"
        raise StorageError(f"{source} is no publication, for it has no {MANIFEST}; {advice}")
    faults = [f"{name} is not in its manifest" for name in sorted(_foreign(present, manifest.files))]
    for name, entry in manifest.files.items():
        if name not in present:
            faults.append(f"{name} is missing")
        elif present[name] != entry.size:
            faults.append(f"{name} has {present[name]} bytes, not {entry.size}")
    if faults:
        advice = "publish it again, without what does not belong to it"
        raise StorageError(f"{source} is not as it was published: {_some(faults)}; {advice}")
    return manifest


def _check_unchanged(local: Iterable[_Local]) -> None:
    for file in local:
        facts = file.path.stat()
        if (facts.st_size, facts.st_mtime_ns) != (file.entry.size, file.modified):
            raise StorageError(f"{file.path} was changed while it was published; publish again")


def _copy(source: Path, target: Path, sha256: str) -> None:
    with files.replacing(target) as temporary:
        shutil.copyfile(source, temporary)
        if files.digest(temporary) != sha256:
            raise StorageError(
                f"{source} is not what was published: its SHA-256 is not {sha256}; publish again"
            )


def _read_manifest(store: s3.Prefix | _Folder) -> Manifest | None:
    text = store.read(MANIFEST)
    return None if text is None else _parse(Manifest, text, store.uri(MANIFEST))


def _read_unfinished(store: s3.Prefix) -> list[str]:
    text = store.read(UNFINISHED)
    return [] if text is None else _parse(_Unfinished, text, store.uri(UNFINISHED)).files


def _parse(kind: type[_Document], text: bytes, place: str) -> _Document:
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise StorageError(f"{place} is none of ours: {describe(error)}; name another place") from error


def _as_text(document: Schema) -> str:
    return json.dumps(document.model_dump(), indent=2, ensure_ascii=False) + "\n"


def _visible(sizes: Mapping[str, int]) -> dict[str, int]:
    return {name: size for name, size in sizes.items() if not _is_hidden(PurePosixPath(name))}


def _foreign(present: Iterable[str], ours: Iterable[str]) -> set[str]:
    return set(present) - set(ours) - {MANIFEST, UNFINISHED}


def _some(faults: list[str]) -> str:
    more = f" and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
    return ", ".join(faults[:_NAMED]) + more
