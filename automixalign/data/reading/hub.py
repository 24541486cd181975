"""Open a data set of the Hugging Face hub as a source."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from automixalign.config.data import LocationSpec
from automixalign.config.sources import HubSource, data_suffix
from automixalign.data.reading.local import open_local
from automixalign.data.reading.row import OpenSource
from automixalign.data.reading.splits import choose_config, choose_split, read_configs
from automixalign.data.reading.tables import BATCH_ROWS, choose, number_rows
from automixalign.steps.step import current_step
from automixalign.storage.hub import find_commit, local_copy
from automixalign.system.errors import DataError


def open_hub(source: HubSource, spec: LocationSpec, columns: Collection[str] | None = None) -> OpenSource:
    """Load one split of a data set as `datasets` does, at the commit that the revision names.

    If the hub does not answer, a local copy of this commit is read, and a warning says so: the tables that
    `datasets` keeps, or else the files that the hub's client keeps.

    Args:
        source: the parsed source.
        spec: the source as configured.
        columns: as for `open_source`.

    Raises:
        DataError: the data set cannot be loaded, or has no such subset or split; its text lists those it has.
    """
    commit, answers = find_commit(spec.path, "dataset", source.revision)
    try:
        if answers:
            opened = _open_tables(_builder(spec, commit), source, spec, columns, commit)
        else:
            opened = _open_copy(source, spec, commit, columns)
    except DataError:
        raise
    except Exception as error:  # the hub's client raises many kinds
        raise DataError(
            f"{source.label} is neither a local path nor a readable hub data set with "
            f"{_selection(spec)}: {_problem(error)}"
        ) from error
    opened.commit = commit
    if not answers:
        current_step().warn(f"{source.label}: the hub does not answer; its local copy is used, commit {commit}")
    return opened


def _builder(spec: LocationSpec, commit: str | None) -> Any:
    import datasets
    from datasets.packaged_modules.cache.cache import Cache

    builder = datasets.load_dataset_builder(
        spec.path, name=spec.subset, data_dir=spec.data_dir, revision=commit
    )
    if isinstance(builder, Cache):  # the newest of the local copies, of whatever commit and subset
        raise ConnectionError(
            "the hub refuses it, or no longer answers; check the id, the revision and HF_TOKEN, or try again"
        )
    return builder


def _open_copy(
    source: HubSource, spec: LocationSpec, commit: str | None, columns: Collection[str] | None
) -> OpenSource:
    from datasets.packaged_modules.cache.cache import Cache

    files = None if commit is None else local_copy(spec.path, "dataset", commit)
    if commit is not None and spec.data_dir is None:
        configs = {} if files is None else read_configs(files, spec.path)
        subset = spec.subset or choose_config(configs, None, spec.path).get("config_name", "default")
        builder = Cache(
            repo_id=spec.path,
            dataset_name=spec.path.rpartition("/")[2],
            config_name=subset,
            version="0.0.0",
            hash=commit,
        )
        if Path(builder.cache_dir).is_dir():
            return _open_tables(builder, source, spec, columns)
    if files is None:
        raise ConnectionError(f"the hub does not answer, and there is no local copy of {commit or 'it'}")
    return open_local(files, spec, columns)


def _open_tables(
    builder: Any,
    source: HubSource,
    spec: LocationSpec,
    columns: Collection[str] | None,
    commit: str | None = None,
) -> OpenSource:
    """Open one split; `commit` is given where the hub lists the files of a commit."""
    builder.download_and_prepare()
    split = spec.split or choose_split(list(builder.info.splits), None, source.label)
    data = builder.as_dataset(split=split)
    data = data.select_columns(choose(data.column_names, columns))
    return OpenSource(
        spec.path,
        [lambda: number_rows(_batches(data), f"{spec.path}[{split}]")],
        {} if commit is None else _passed_over(builder, spec.path, commit, split),
    )


def _passed_over(builder: Any, path: str, commit: str, split: str) -> dict[str, str]:
    """The data files of a repository that `datasets` does not read: it keeps to one kind of file."""
    from huggingface_hub import HfApi

    root = f"hf://datasets/{path}@{commit}/"
    splits = {
        file.removeprefix(root): other
        for other, files in (builder.config.data_files or {}).items()
        for file in files
    }
    read = {part.partition("[")[0].strip() for part in split.split("+")}  # as in `train[:10%]+test`
    passed_over = {}
    for file in HfApi().list_repo_files(path, repo_type="dataset", revision=commit):
        other = splits.get(file)
        if data_suffix(file) and other not in read:
            passed_over[file] = (
                f"split {other}; name it by 'split' to read it"
                if other
                else "datasets does not read it with this subset or beside files of another kind"
            )
    return passed_over


def _batches(data: Any) -> Iterator[pa.RecordBatch]:
    """Yield the rows without decoding: an image may be an address, which would be fetched."""
    for table in data.with_format("arrow").iter(batch_size=BATCH_ROWS):
        yield from table.to_batches()


def _problem(error: Exception) -> str:
    texts = [str(error), str(error.__cause__ or "")]  # a failure to make the tables says why in its cause
    text = " ".join(": ".join(filter(None, texts)).partition("Example of usage")[0].split())
    return f"{text}; name one by 'subset'" if text.startswith("Config name is missing") else text


def _selection(spec: LocationSpec) -> str:
    keys = {"subset": spec.subset, "data_dir": spec.data_dir, "split": spec.split or "train"}
    return ", ".join(f"{key} {value!r:.80}" for key, value in keys.items() if value)
