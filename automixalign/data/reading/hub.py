"""Open a data set of the Hugging Face hub as a source."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from automixalign.config.data import SourceSpec
from automixalign.config.sources import HubSource
from automixalign.data.reading.local import open_local
from automixalign.data.reading.row import OpenSource
from automixalign.data.reading.splits import choose_split
from automixalign.data.reading.tables import BATCH_ROWS, choose, number_rows
from automixalign.steps.step import current_step
from automixalign.storage.hub import find_commit
from automixalign.system.errors import DataError


def open_hub(source: HubSource, spec: SourceSpec, columns: Collection[str] | None = None) -> OpenSource:
    """Load one split of a data set as `datasets` does, at the commit that the revision names.

    If the hub does not answer, the local copy of that commit is opened: the tables that `datasets` keeps, or
    else the files that the hub's client keeps. A warning says so.

    Args:
        source: the parsed source.
        spec: the source as configured.
        columns: as for `open_source`.

    Raises:
        DataError: the data set cannot be loaded, or has no such subset or split; its text lists those it has.
    """
    commit, answers = find_commit(spec.path, "dataset", source.revision)
    try:
        builder = _builder(spec, commit) if answers else _stored_builder(spec)
        if commit is not None and builder.hash != commit:
            raise FileNotFoundError(f"the local copy is of commit {builder.hash}, not {commit}")
        builder.download_and_prepare()
        split = spec.split or choose_split(list(builder.info.splits), None, source.label)
        data = builder.as_dataset(split=split)
    except DataError:
        raise
    except Exception as error:  # the hub's client raises many kinds
        snapshot = None if answers else _stored_files(spec.path, commit)
        if snapshot is None:
            raise DataError(
                f"{source.label} is neither a local path nor a readable hub data set with "
                f"{_selection(spec)}{'' if answers else '; the hub does not answer'}: {error}"
            ) from error
        opened, commit = open_local(snapshot, spec, columns), snapshot.name
    else:
        data = data.select_columns(choose(data.column_names, columns))
        opened = OpenSource(spec.path, lambda: number_rows(_batches(data), f"{spec.path}[{split}]"))
        commit = builder.hash
    if not answers:
        current_step().warn(f"{source.label}: the hub does not answer; its local copy is used, commit {commit}")
    return opened


def _builder(spec: SourceSpec, commit: str | None) -> Any:
    import datasets

    return datasets.load_dataset_builder(spec.path, name=spec.subset, data_dir=spec.data_dir, revision=commit)


def _stored_builder(spec: SourceSpec) -> Any:
    """The tables of a data set that `datasets` loaded before; it would look for the hub for half a minute."""
    from datasets.packaged_modules.cache.cache import Cache

    return Cache(
        repo_id=spec.path,
        dataset_name=spec.path.rpartition("/")[2],
        config_name=spec.subset,
        data_dir=spec.data_dir,
        version="auto",
        hash="auto",
    )


def _stored_files(path: str, commit: str | None) -> Path | None:
    """The files of a data set that the hub's client fetched before."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, repo_type="dataset", revision=commit, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def _batches(data: Any) -> Iterator[pa.RecordBatch]:
    """Yield the rows without decoding: an image may be an address, which would be fetched."""
    for table in data.with_format("arrow").iter(batch_size=BATCH_ROWS):
        yield from table.to_batches()


def _selection(spec: SourceSpec) -> str:
    keys = {"subset": spec.subset, "data_dir": spec.data_dir, "split": spec.split or "train"}
    return ", ".join(f"{key} {value!r:.80}" for key, value in keys.items() if value)
