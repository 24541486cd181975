"""Hand a model of a run on: to a folder, to S3 or to the model hub, with a model card.

What is handed on loads on any machine, with transformers or peft alone.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from automixalign.models.base_address import FILE as BASE_ADDRESS
from automixalign.models.base_address import read_address
from automixalign.models.base_card import CARD
from automixalign.models.safety import ADAPTER_CONFIG, check_model_folder, is_adapter
from automixalign.release.model_card import Form, RunFacts, write_model_card
from automixalign.report import leaderboard
from automixalign.report.runs import Run
from automixalign.storage import files, hub, publication, s3
from automixalign.system.errors import ConfigError

_SUFFIXES = (".safetensors", ".json", ".jinja", ".txt", ".model")
"""Endings of the files that loaders read: weights, configurations, tokenizer, chat templates."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """What was handed on.

    Args:
        model: its name in the run.
        form: a full model or an adapter.
        to: where it is.
        files: how many files.
        size: their bytes.
        notes: sentences for the user.
        address: what a loader takes; for S3, the folder that it is copied to first.
    """

    model: str
    form: Form
    to: str
    files: int
    size: int
    notes: list[str]
    address: str

    @property
    def load(self) -> list[str]:
        """The lines that load it: of Python, and before it a command that copies it from S3."""
        loader = "AutoPeftModelForCausalLM" if self.form == "adapter" else "AutoModelForCausalLM"
        copy = [f"aws s3 cp --recursive {self.to} {self.address}"] if s3.is_uri(self.to) else []
        return [*copy, f"{loader}.from_pretrained({json.dumps(self.address)})"]


Started = Callable[[int], Callable[[int], None]]
"""Takes the number of bytes to copy; returns what is called with those that were copied since the last call."""


def export_model(
    folder: Path,
    to: str,
    model: str | None = None,
    *,
    form: Form | None = None,
    replace: bool = False,
    private: bool | None = None,
    started: Started = lambda _: lambda _: None,
) -> Export:
    """Copy a model of a finished run, with a model card.

    Args:
        folder: the run folder.
        to: a folder, `s3://bucket/prefix` or `hf://ORG/NAME`.
        model: its name in the leaderboard; by default the one that the run chose.
        form: `full` merges an adapter into its base. `adapter` needs a base model on the hub. By default, an
            adapter stays one if its base model is on the hub.
        replace: whether to replace an earlier export or the content of a repository.
        private: whether a repository on the hub is private; by default it is.
        started: called when the copy begins.

    Raises:
        ConfigError: `folder` is no finished run, or has no such model or no such form of it.
        StorageError: the destination is in use or cannot be written.
    """
    if private is not None and not hub.is_uri(to):
        raise ConfigError(f"--private and --public go with --to {hub.SCHEME}ORG/NAME, not with {to}")
    run = Run.read(folder)
    facts, name = RunFacts.of_run(run), model or _chosen(run)
    facts.entry(name)
    source = folder / "models" / name
    check_model_folder(source)
    form, notes = _form(source, facts.base_model, form)
    target = hub.ModelRepository(to, private=private is not False, replace=replace) if hub.is_uri(to) else None
    if target:
        target.prepare()
    else:
        publication.check_free(to, replace)
        publication.check_writable(to)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=_folder_beside(to)) as temporary:
        scratch = Path(temporary)
        if is_adapter(source) and form == "full":
            from automixalign.models.full_model import write_full_model
            from automixalign.models.prepare import transformers_silenced

            with transformers_silenced():
                write_full_model(source, facts.base_model, scratch / "model")
            source = scratch / "model"
        address = target.id if target else name if s3.is_uri(to) else to
        card = write_model_card(scratch, facts, name, form, target.id if target else name)
        content, left_out = _loadable(source)
        content[CARD] = card
        if left_out:
            notes.append(f"not copied, because loaders do not read it: {', '.join(left_out)}")
        size = sum(path.stat().st_size for path in content.values())
        title = f"{name} of {run.experiment.name}"
        if target:
            started(0)
            target.upload(content, f"Upload {title}")
        else:
            publication.publish(content, to, run=title, replace=replace, progress=started(size))
    return Export(model=name, form=form, to=to, files=len(content), size=size, notes=notes, address=address)


def _chosen(run: Run) -> str:
    entry = leaderboard.chosen(run.entries)
    if entry is None:
        names = ", ".join(entry["model"] for entry in run.entries)
        raise ConfigError(f"{run.folder}: {leaderboard.choice(run.entries)} Name a model: {names}")
    return str(entry["model"])


def _form(source: Path, base_model: Path, wanted: Form | None) -> tuple[Form, list[str]]:
    """The form of the export, and what the user must know of it.

    Raises:
        ConfigError: an adapter is wanted, but the model is a full one, or others cannot load its base model.
    """
    if not is_adapter(source):
        if wanted == "adapter":
            raise ConfigError(f"--adapter: {source.name} is a full model; leave the option out")
        return "full", []
    config = files.read_json(source / ADAPTER_CONFIG)
    address = read_address(base_model)
    if address and not address.is_local and address.name == config["base_model_name_or_path"]:
        return wanted or "adapter", []
    reason = "its base model is not on the model hub, so others cannot load an adapter"
    if wanted == "adapter":
        raise ConfigError(f"--adapter: {source.name}: {reason}; use --merged")
    return "full", [] if wanted else [f"{source.name} is merged into its base model: {reason}"]


def _loadable(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """The files of a model that loaders read, by name, and the names of others."""
    content, left_out = {}, []
    for path in files.list_files(folder):
        name = path.relative_to(folder).as_posix()
        if name in (CARD, BASE_ADDRESS):  # of the reference model; the latter holds a path of this machine
            continue
        if path.suffix in _SUFFIXES:
            content[name] = path
        else:
            left_out.append(name)
    return content, left_out


def _folder_beside(to: str) -> Path | None:
    """Where to write a full model first: beside the new folder, or with the system's temporary files."""
    if s3.is_uri(to) or hub.is_uri(to):
        return None
    parent = Path(to).absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    return parent
