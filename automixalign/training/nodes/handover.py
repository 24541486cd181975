"""A training on its way to the nodes of a TrainJob and back, through a prefix of S3 that all of them reach.

    files/SHA256                an input file by its content, so that several trainings share it
    trainings/ID/training.json  what is to be trained, and from which files
    trainings/ID/errors/        what a node failed with, TIME-NODE.json: the first by name came first
    trainings/ID/result/        a publication (see `publish`): model, trajectory, facts

ID stands for everything that determines the training, so that a second attempt finds what the first one left.
Only errors are ever deleted: let a lifecycle rule of the bucket end the rest.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from automixalign.storage import files, s3
from automixalign.storage import publication as publish
from automixalign.storage.publication import Manifest, PublishedFile
from automixalign.system import errors
from automixalign.system.errors import AutoMixAlignError, ConfigError, StorageError, TrainingError
from automixalign.system.provenance import library_digest
from automixalign.system.schema import Schema
from automixalign.training.job import JOB, RESULT, Job, Training

_TRAINING = "training.json"
_MODEL, _TRAJECTORY = "model", "trajectory.jsonl"
_NAME = 24
"""So many characters of a step's name are part of an ID."""


class Handover(Schema):
    """A training, with every path relative to a folder that a node makes."""

    library: str
    """Digest of the code that hands it over."""
    job: Job
    inputs: Manifest

    @property
    def id(self) -> str:
        """A DNS label of at most 41 characters: the step's name, and a digest of all that counts."""
        digest = hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]
        name = re.sub("[^a-z0-9]+", "-", self.job.name.lower()).strip("-")[:_NAME].rstrip("-")
        return f"{name}-{digest}" if name else digest


def pack(training: Training) -> tuple[Handover, dict[str, Path]]:
    """A training as it is handed over, and its input files by their names in it.

    Raises:
        StorageError: an input holds no file.
    """
    sources: dict[str, Path] = {}
    outputs = {"output": _MODEL, "trajectory": _TRAJECTORY}

    def place(name: str, path: Path) -> Path:
        if name in outputs:
            return Path(outputs[name])
        found = _files_below(path)
        if not found:
            raise StorageError(f"{name}: there is no file in {path}; did the step before it end well?")
        sources.update({f"inputs/{name}/{file.relative_to(path).as_posix()}": file for file in found})
        return Path("inputs") / name

    job = Job.of(_relocated(training, place))
    # A set has no order of its own, and the ID is to be the same in every process.
    unordered = {name: sorted(value) for name, value in training if isinstance(value, frozenset)}
    job = job.model_copy(update={"training": {**job.training, **unordered}})
    entries = {
        name: PublishedFile(size=path.stat().st_size, sha256=files.digest(path))
        for name, path in sources.items()
    }
    return Handover(library=library_digest(), job=job, inputs=Manifest(files=entries)), sources


class Exchange:
    """The place of one training, `s3://.../trainings/ID`. Every method raises `StorageError` where S3 fails."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._own, self._errors = s3.Prefix(uri), s3.Prefix(f"{uri}/errors")
        self._files = s3.Prefix(uri.rpartition("/trainings/")[0] + "/files")
        self._result = f"{uri}/result"

    @classmethod
    def of(cls, handover: Handover, storage: str) -> Self:
        """The place of a training below a prefix that all trainings use."""
        return cls(f"{storage.rstrip('/')}/trainings/{handover.id}")

    def send(self, handover: Handover, sources: Mapping[str, Path]) -> None:
        """Upload what is not there yet; the description comes last."""
        for name, entry in handover.inputs.files.items():
            if not self._files.holds(entry.sha256, entry.size, entry.sha256):
                self._files.upload(entry.sha256, sources[name], entry.size, entry.sha256)
        self._own.write(_TRAINING, handover.model_dump_json(indent=2).encode())

    def receive(self, folder: Path) -> Training:
        """Fetch the training's inputs into a folder of this machine, and leave its `job.json` there.

        Raises:
            ConfigError: other code than this has handed it over.
        """
        text = self._own.read(_TRAINING)
        if text is None:
            raise StorageError(f"{self._own.uri(_TRAINING)} is not there; start the training's step again")
        handover = Handover.model_validate_json(text)
        if handover.library != library_digest():
            raise ConfigError(
                f"the node runs other code ({library_digest()}) than the step that started it "
                f"({handover.library}): name the image by its digest, so that all pods run the same"
            )
        for name, entry in handover.inputs.files.items():
            self._files.fetch(entry.sha256, folder / name, entry.sha256)
        training = _relocated(handover.job.load(), lambda _, path: folder / path)
        job = handover.job.model_copy(update={"training": training.model_dump(mode="json")})
        files.write_text(folder / JOB, job.model_dump_json())
        return training

    def give_back(self, folder: Path) -> None:
        """Publish what was trained in a folder that `receive` has filled."""
        places = {name: folder / name for name in (_MODEL, _TRAJECTORY, RESULT)}
        publish.publish(places, self._result, run=self.uri, replace=True)

    def is_finished(self) -> bool:
        """Whether a result is there, whole."""
        return s3.Prefix(self._result).read(publish.MANIFEST) is not None

    def take(self, training: Training) -> dict[str, Any]:
        """Put model and trajectory where the training wants them; return its facts."""
        beside = training.output.parent
        beside.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".result.", dir=beside) as scratch:
            result = Path(scratch) / "result"
            publish.fetch(self._result, result)
            files.link(result / _MODEL, training.output)
            files.link(result / _TRAJECTORY, training.trajectory)
            facts: dict[str, Any] = files.read_json(result / RESULT)
        return facts

    def tell(self, error: AutoMixAlignError, node: str, nanoseconds: int) -> None:
        """Leave what a node failed with, and when, for the step that waits."""
        text = json.dumps([type(error).__name__, str(error)], ensure_ascii=False)
        self._errors.write(f"{nanoseconds:020d}-{node}.json", text.encode())

    def first_error(self) -> AutoMixAlignError | None:
        """The error that came first, if a node has told one; further ones are notes of it."""
        told = {name: self._errors.read(name) for name in sorted(self._errors.sizes())}
        found = [(name, *json.loads(text)) for name, text in told.items() if text]
        if not found:
            return None
        (_, kind, message), *others = found
        error = (errors.error_class(kind) or TrainingError)(message)
        for name, other, text in others:
            node = name.removesuffix(".json").rpartition("-")[2]
            error.add_note(f"then node {node} failed with {other}: {text}")
        return error

    def forget_errors(self) -> None:
        """Delete what an earlier attempt failed with."""
        for name in self._errors.sizes():
            self._errors.delete(name)


def _files_below(folder: Path) -> list[Path]:
    """Every file but the hidden ones."""
    found = (file for file in folder.rglob("*") if file.is_file())
    return sorted(file for file in found if not any(p.startswith(".") for p in file.relative_to(folder).parts))


def _relocated(training: Training, place: Callable[[str, Path], Path]) -> Training:
    """The training with every path changed; those of a list are called by the field's name and their number."""
    changed: dict[str, Path | list[Path]] = {}
    for name, value in training:
        if isinstance(value, Path):
            changed[name] = place(name, value)
        elif isinstance(value, list) and all(isinstance(path, Path) for path in value):
            changed[name] = [place(f"{name}/{number}", path) for number, path in enumerate(value)]
    return training.model_copy(update=changed)
