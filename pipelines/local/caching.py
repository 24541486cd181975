"""kfp's local cache of step results, made such that it can be trusted.

kfp knows a result by component, image and arguments, artifacts among them by where they lie, and believes that
what lies there is what was put there. Here

- an artifact is known by its metadata, which hold the digest of its content (`automixalign.steps.artifacts`):
  equal inputs give a hit in whatever run folder they lie, and other content gives none;
- a result is taken only if every file of it still has its digest; what was altered is said and made again;
- what is taken is linked into the run that takes it, which stands on its own then, and tells MLflow what the
  step had told when it ran.

Code, versions, environment, seed and sources are part of the steps' settings, and those are arguments.
"""

import re
from pathlib import Path
from typing import Any

from kfp import dsl
from kfp.local.cache import LocalCache

from automixalign.steps import artifacts
from automixalign.steps.events import EventLog
from automixalign.steps.tracking import spool
from automixalign.steps.tracking.record import RECORD_FILE, Record, new_key
from automixalign.storage import files

RESULT = "executor_output.json"
"""kfp's name for what a step says of its outputs."""


class StepCache:
    """The results that a run can take: its own, for when it is started again, and those of other runs.

    Args:
        own: folder with the entries of this run folder.
        attempt: where results that are taken are linked.
        shared: folder with the entries of all runs, None to do without.
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
        """kfp's key, of artifacts by their metadata."""
        component = re.sub(r"-\d+$", "", component_name)  # kfp numbers the uses of a component
        known = {name: _known_by(value) for name, value in arguments.items()}
        key: str = self.own.compute_key(component, image, full_command, known, env_vars, custom_cache_key)
        return key

    def get(self, key: str) -> dict[str, Any] | None:
        """The outputs of a step that was done before, linked into this attempt; None if it must run."""
        for place in (self.own, *self.shared):
            outputs = place.get(key)
            if outputs is None:
                continue
            if faults := [fault for each in _artifacts(outputs) if (fault := artifacts.fault_of(each))]:
                _tell("warning", message=f"a cached result is not used: {'; '.join(faults)}")
                continue
            taken = self._take(key, outputs)
            # What another run made stays known by where it made it; our own earlier attempts go.
            (self if place is self.own else self.own).put(key, taken)
            return taken
        return None

    def put(self, key: str, outputs: dict[str, Any]) -> None:
        """Keep what a step has made, for this run and for others."""
        for artifact in _artifacts(outputs):
            Path(artifact.path).touch()  # one of metadata alone has no file, and kfp would take it for lost
        for place in (self.own, *self.shared):
            place.put(key, outputs)

    def _take(self, key: str, outputs: dict[str, Any]) -> dict[str, Any]:
        """Link a result into this attempt, as the step itself would have left it there."""
        folder = self.attempt / "taken" / key[:32]
        made_in = Path(_artifacts(outputs)[0].path).parent
        found = {name: value for name, value in outputs.items() if isinstance(value, dsl.Artifact)}
        for artifact in found.values():
            target = folder / Path(artifact.path).name
            if Path(artifact.path).exists():
                files.link(Path(artifact.path), target)
            artifact.uri = str(target)
        said = {name: {"artifacts": [{"uri": a.uri, "metadata": a.metadata}]} for name, a in found.items()}
        files.write_json(folder / RESULT, {"artifacts": said})
        self._tell_of_it(made_in, folder)
        return outputs

    def _tell_of_it(self, made_in: Path, folder: Path) -> None:
        """Show the step as done, and hand its record to MLflow unless this run folder's own did so already."""
        file = made_in / RECORD_FILE
        if not file.exists():
            return
        record = Record.model_validate_json(file.read_text(encoding="utf-8"))
        record.artifacts = [(path.replace(str(made_in), str(folder), 1), to) for path, to in record.artifacts]
        files.write_text(folder / RECORD_FILE, record.model_dump_json())
        _tell("cached", record.stage, record.name)
        waiting = spool.of_environment()
        if waiting and not made_in.is_relative_to(self.attempt.parent):
            tags = {**record.tags, "automixalign.cached": "true"}
            waiting.add(record.model_copy(update={"key": new_key(), "tags": tags}))


def _known_by(value: Any) -> Any:
    """What stands for an argument in a key; of an artifact, its kind and metadata."""
    if isinstance(value, dsl.Artifact):
        return [type(value).schema_title, value.metadata]
    return [_known_by(each) for each in value] if isinstance(value, list) else value


def _artifacts(outputs: dict[str, Any]) -> list[Any]:
    return [value for value in outputs.values() if isinstance(value, dsl.Artifact)]


def _tell(event: str, stage: str = "cache", name: str = "", **facts: Any) -> None:
    EventLog(stage, name).write(event, **facts)
