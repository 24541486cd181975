"""A training on its way to the nodes of a TrainJob and back, through an S3 prefix that all of them reach.

    files/SHA256                an input file by its content; several trainings share it
    trainings/ID/training.json  the training and the names of its input files
    trainings/ID/errors/        TIME-NODE.json: the error of a node; the first name is the first error
    trainings/ID/trained/       a publication (`storage/publication`): model, trajectory, facts
    trainings/ID/result/        a publication that completes it: facts, and what `Training.finish` adds

ID is made of everything that determines the training, so a second attempt finds the files of the first one.
Only errors are deleted: use a lifecycle rule of the bucket for the rest.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from automixalign.steps.jobs.job import JOB, PackedJob, result_file
from automixalign.storage import files, publication, s3
from automixalign.storage.publication import Manifest, PublishedFile
from automixalign.system import errors
from automixalign.system.errors import AutoMixAlignError, ConfigError, StorageError, TrainingError
from automixalign.system.provenance import library_digest
from automixalign.system.schema import Schema
from automixalign.training.job import Training

_TRAINING = "training.json"
_TRAINED = {"output": "model", "trajectory": "trajectory.jsonl"}
"""Field of a training -> its name in the folder of a node, and in S3: what the processes write."""
_ADDED = {"scores": "scores"}
"""What the first node adds."""
_OUTPUTS = {**_TRAINED, **_ADDED}
_FACTS = result_file(0)
_MAX_NAME = 24
"""Characters of a stage's name in an ID."""


class Handover(Schema):
    """A training whose paths are relative to the folder of a node."""

    library: str
    """Digest of the sender's code."""
    job: PackedJob
    inputs: Manifest

    @property
    def id(self) -> str:
        """A DNS label of at most 41 characters: the stage's name, and a digest of the rest."""
        digest = hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]
        name = re.sub("[^a-z0-9]+", "-", self.job.name.lower()).strip("-")[:_MAX_NAME].rstrip("-")
        return f"{name}-{digest}" if name else digest


def pack(training: Training) -> tuple[Handover, dict[str, Path]]:
    """Prepare a training for the nodes.

    Returns:
        The handover, and the path of each of its input files.

    Raises:
        StorageError: an input folder holds no file.
    """
    sources: dict[str, Path] = {}

    def relocate(name: str, path: Path) -> Path:
        if name in _OUTPUTS:
            return Path(_OUTPUTS[name])
        paths = _files_below(path)
        if not paths:
            raise StorageError(f"{name}: there is no file in {path}; did the stage that writes it succeed?")
        sources.update({f"inputs/{name}/{file.relative_to(path).as_posix()}": file for file in paths})
        return Path("inputs") / name

    job = PackedJob.of(_relocated(training, relocate))
    # The order of a set differs between processes; the ID must not.
    unordered = {name: sorted(value) for name, value in training if isinstance(value, frozenset)}
    job = job.model_copy(update={"job": {**job.job, **unordered}})
    entries = {
        name: PublishedFile(size=path.stat().st_size, sha256=files.digest(path))
        for name, path in sources.items()
    }
    return Handover(library=library_digest(), job=job, inputs=Manifest(files=entries)), sources


class Exchange:
    """One training in S3, `s3://.../trainings/ID`. Every method raises `StorageError` if S3 fails."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._own, self._errors = s3.Prefix(uri), s3.Prefix(f"{uri}/errors")
        self._files = s3.Prefix(uri.rpartition("/trainings/")[0] + "/files")
        self._trained, self._result = f"{uri}/trained", f"{uri}/result"

    @classmethod
    def of(cls, handover: Handover, storage: str) -> Self:
        """The exchange of a training below the prefix of all trainings."""
        return cls(f"{storage.rstrip('/')}/trainings/{handover.id}")

    def send(self, handover: Handover, sources: Mapping[str, Path]) -> None:
        """Upload the missing input files, then the description."""
        for name, entry in handover.inputs.files.items():
            if not self._files.holds(entry.sha256, entry.size, entry.sha256):
                self._files.upload(entry.sha256, sources[name], entry.size, entry.sha256)
        self._own.write(_TRAINING, handover.model_dump_json(indent=2).encode())

    def receive(self, folder: Path) -> Training:
        """Download the inputs into a folder of this machine, and write `job.json` there.

        Raises:
            ConfigError: the sender runs other code.
        """
        text = self._own.read(_TRAINING)
        if text is None:
            raise StorageError(f"{self._own.uri(_TRAINING)} does not exist; start the training's stage again")
        handover = Handover.model_validate_json(text)
        if handover.library != library_digest():
            raise ConfigError(
                f"the node runs other code ({library_digest()}) than the stage that started it "
                f"({handover.library}): name the image by its digest, so that all pods run the same"
            )
        for name, entry in handover.inputs.files.items():
            self._files.fetch(entry.sha256, folder / name, entry.sha256)
        job = handover.job.load()
        if not isinstance(job, Training):
            raise ConfigError(f"{self._own.uri(_TRAINING)} is no training")
        training = _relocated(job, lambda _, path: folder / path)
        packed = handover.job.model_copy(update={"job": training.model_dump(mode="json")})
        files.write_text(folder / JOB, packed.model_dump_json())
        return training

    def upload_trained(self, folder: Path) -> None:
        """Upload what the processes wrote to a folder that `receive` has filled."""
        self._upload(folder, self._trained, _TRAINED)

    def upload_result(self, folder: Path) -> None:
        """Upload what the first node added; the training is then finished."""
        self._upload(folder, self._result, _ADDED)

    def _upload(self, folder: Path, uri: str, outputs: Mapping[str, str]) -> None:
        paths = {name: folder / name for name in (*outputs.values(), _FACTS) if (folder / name).exists()}
        publication.publish(paths, uri, run=self.uri, replace=True)

    def is_trained(self) -> bool:
        """Whether S3 holds a model of this training, which may not be finished."""
        return s3.Prefix(self._trained).read(publication.MANIFEST) is not None

    def is_finished(self) -> bool:
        """Whether S3 holds a complete result."""
        return s3.Prefix(self._result).read(publication.MANIFEST) is not None

    def download_trained(self, training: Training) -> dict[str, Any]:
        """Download what the processes wrote to the paths of the training; return its facts."""
        return self._download(training, self._trained, _TRAINED)

    def download_result(self, training: Training) -> dict[str, Any]:
        """Download all outputs to the paths of the training; return its facts."""
        self.download_trained(training)
        return self._download(training, self._result, _ADDED)

    def _download(self, training: Training, uri: str, outputs: Mapping[str, str]) -> dict[str, Any]:
        parent = training.output.parent
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".result.", dir=parent) as scratch:
            result = Path(scratch) / "result"
            publication.fetch(uri, result)
            for field, name in outputs.items():
                if (path := getattr(training, field, None)) is not None:
                    files.link(result / name, path)
            facts: dict[str, Any] = files.read_json(result / _FACTS)
        return facts

    def report_error(self, error: AutoMixAlignError, node: str, nanoseconds: int) -> None:
        """Upload the error of a node and its time, for the waiting stage."""
        text = json.dumps([type(error).__name__, str(error)], ensure_ascii=False)
        self._errors.write(f"{nanoseconds:020d}-{node}.json", text.encode())

    def first_error(self) -> AutoMixAlignError | None:
        """The error that a node reported first, with the others as its notes; None without errors."""
        texts = {name: self._errors.read(name) for name in sorted(self._errors.sizes())}
        reports = [(name, *json.loads(text)) for name, text in texts.items() if text]
        if not reports:
            return None
        (_, kind, message), *others = reports
        error = (errors.error_class(kind) or TrainingError)(message)
        for name, other, text in others:
            node = name.removesuffix(".json").rpartition("-")[2]
            error.add_note(f"then node {node} failed with {other}: {text}")
        return error

    def delete_errors(self) -> None:
        """Delete the errors of an earlier attempt."""
        for name in self._errors.sizes():
            self._errors.delete(name)


def _files_below(folder: Path) -> list[Path]:
    """The files in a folder and its subfolders, without hidden ones."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in paths if not any(p.startswith(".") for p in path.relative_to(folder).parts))


def _relocated(training: Training, relocate: Callable[[str, Path], Path]) -> Training:
    """The training with every path changed by `relocate`, which also gets the name of its field.

    The name of a path in a list is FIELD/NUMBER.
    """
    changed: dict[str, Path | list[Path]] = {}
    for name, value in training:
        if isinstance(value, Path):
            changed[name] = relocate(name, value)
        elif isinstance(value, list) and all(isinstance(path, Path) for path in value):
            changed[name] = [relocate(f"{name}/{number}", path) for number, path in enumerate(value)]
    return training.model_copy(update=changed)
