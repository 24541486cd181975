"""kfp's local cache of stage results, with stricter checks.

kfp identifies an artifact by its path, and assumes that its files do not change. Here

- the artifact's metadata identify it. They hold the digest of its content (`automixalign.steps.artifacts`), so
  equal content gives a hit from any run folder, and other content gives none;
- a result is used only if every file still has its digest. Otherwise a warning reports it and the stage runs;
- a result from the cache is linked into the run, which is then complete without the other run folder. Its
  MLflow record is sent again, marked as cached.

The settings of a stage hold its code digest, versions, environment, seed and sources. They are arguments, so
they are part of the key.
"""

import os
import re
import stat
from pathlib import Path
from typing import Any

from kfp import dsl
from kfp.local.cache import LocalCache

from automixalign.steps import artifacts
from automixalign.steps.events import EventLog
from automixalign.steps.tracking import spool
from automixalign.steps.tracking.record import RECORD_FILE, Record, new_key
from automixalign.storage import files
from automixalign.system.errors import ConfigError
from pipelines.local.outputs import EXECUTOR_OUTPUT


def shared_cache_folder(option: Path | None) -> Path:
    """The cache folder of all runs: the one of the option, or the default in the user's cache folder.

    Raises:
        ConfigError: it cannot be created, or other users can write to it. Its content is trusted.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = option or caches / "automixalign" / "steps"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
    except OSError as error:
        raise ConfigError(f"--cache {folder} cannot be written to: {error}; or give --no-cache") from error
    if status.st_uid != os.getuid() or status.st_mode & stat.S_IWOTH:
        raise ConfigError(
            f"--cache {folder} is not yours alone, and its content is trusted: name another folder, or change "
            "its owner and permissions"
        )
    return folder


class StageCache:
    """The results that a run can use: its own, after it was interrupted, and those of other runs.

    Args:
        own: cache folder of this run folder.
        attempt: folder of the attempt; results from the cache are linked into it.
        shared: cache folder of all runs; None to use only `own`.
    """

    def __init__(self, own: Path, attempt: Path, shared: Path | None) -> None:
        self.own, self.attempt = LocalCache(str(own)), attempt
        self.shared = [LocalCache(str(shared))] if shared else []

    def compute_key(
        self,
        component_name: str,
        image: str,
        full_command: list[str],
        arguments: dict[str, Any],
        env_vars: dict[str, str] | None = None,
        custom_cache_key: str | None = None,
    ) -> str:
        """kfp's key, with artifacts identified by their metadata."""
        component = re.sub(r"-\d+$", "", component_name)  # kfp numbers the uses of a component
        identities = {name: _identity(value) for name, value in arguments.items()}
        return str(
            self.own.compute_key(
                component_name=component,
                image=image,
                full_command=full_command,
                arguments=identities,
                env_vars=env_vars,
                custom_cache_key=custom_cache_key,
            )
        )

    def get(self, key: str) -> dict[str, Any] | None:
        """The outputs of a stage, linked into this attempt; None if the stage must run."""
        for cache in (self.own, *self.shared):
            outputs: dict[str, Any] | None = cache.get(key)
            if outputs is None:
                continue
            if faults := [fault for each in _artifacts(outputs) if (fault := artifacts.fault_of(each))]:
                EventLog("cache", "").write(
                    "warning", message=f"a cached result is not used: {'; '.join(faults)}"
                )
                continue
            self._link(key, outputs)
            # The shared cache keeps the path in the other run. Our own earlier attempts will be deleted.
            (self if cache is self.own else self.own).put(key, outputs)
            return outputs
        return None

    def put(self, key: str, outputs: dict[str, Any]) -> None:
        """Store the outputs of a stage for this run and for others."""
        for artifact in _artifacts(outputs):
            Path(artifact.path).touch()  # kfp ignores an artifact without a file; some have only metadata
        for cache in (self.own, *self.shared):
            cache.put(key, outputs)

    def _link(self, key: str, outputs: dict[str, Any]) -> None:
        """Link a result into this attempt, with the same files as after a run of the stage."""
        folder = self.attempt / "cached" / key[:32]
        origin = Path(_artifacts(outputs)[0].path).parent
        records = {}
        for name, artifact in outputs.items():
            if isinstance(artifact, dsl.Artifact):
                target = folder / Path(artifact.path).name
                if Path(artifact.path).exists():
                    files.link(Path(artifact.path), target)
                artifact.uri = str(target)
                records[name] = {"artifacts": [{"uri": artifact.uri, "metadata": artifact.metadata}]}
        files.write_json(folder / EXECUTOR_OUTPUT, {"artifacts": records})
        if (origin / RECORD_FILE).exists():
            self._report(origin, folder)

    def _report(self, origin: Path, folder: Path) -> None:
        """Report the stage as cached, and spool its MLflow record unless this run already sent it."""
        record = Record.model_validate_json((origin / RECORD_FILE).read_text(encoding="utf-8"))
        record.artifacts = [(path.replace(str(origin), str(folder), 1), to) for path, to in record.artifacts]
        files.write_text(folder / RECORD_FILE, record.model_dump_json())
        EventLog(record.stage, record.name).write("cached")
        mlflow_spool = spool.of_environment()
        if mlflow_spool and not origin.is_relative_to(self.attempt.parent):
            tags = {**record.tags, "automixalign.cached": "true"}
            mlflow_spool.add(record.model_copy(update={"key": new_key(), "tags": tags}))


def _identity(argument: Any) -> Any:
    """What represents an argument in a key; for an artifact, its type and metadata."""
    if isinstance(argument, dsl.Artifact):
        return [type(argument).schema_title, argument.metadata]
    return [_identity(each) for each in argument] if isinstance(argument, list) else argument


def _artifacts(outputs: dict[str, Any]) -> list[Any]:
    return [value for value in outputs.values() if isinstance(value, dsl.Artifact)]
