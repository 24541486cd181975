"""Find the commit that a name on the Hugging Face hub points to; it identifies cached results."""

from pathlib import Path
from typing import Literal

Kind = Literal["model", "dataset"]


def commit_of(repo: str, kind: Kind, revision: str | None = None) -> str | None:
    """Return the commit of a repository's revision.

    Without an answer from the hub, it is the commit of the local copy, which is then loaded.

    Returns:
        None if the hub does not answer and there is no local copy. Loading the repository then says why.
    """
    return find_commit(repo, kind, revision)[0]


def find_commit(repo: str, kind: Kind, revision: str | None = None) -> tuple[str | None, bool]:
    """Return the commit as `commit_of` does, and whether the hub answers."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.file_download import repo_folder_name

    try:
        return str(HfApi().repo_info(repo, repo_type=kind, revision=revision).sha), True
    except HFValidationError:
        answers = True
    except HfHubHTTPError as error:  # a refusal is an answer, a failure of the server is none
        answers = error.response.status_code < 500
    except Exception:  # no network or offline mode; the client lets the errors of its HTTP library through
        answers = False
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type=kind)
    ref = folder / "refs" / (revision or "main")
    if ref.is_file():
        return ref.read_text(encoding="utf-8").strip(), answers
    copies = [copy.name for copy in (folder / "snapshots").glob("*")]
    # A copy that was fetched by its commit has no reference.
    return (copies[0] if revision is None and len(copies) == 1 else revision), answers


def is_cached(repo: str, file: str, revision: str | None = None) -> bool:
    """Whether the hub's local copy has a file of a model."""
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(repo, file, cache_dir=constants.HF_HUB_CACHE, revision=revision)
    except HFValidationError:  # no hub has such an id
        return False
    return isinstance(path, str)


def local_copy(repo: str, kind: Kind, commit: str) -> Path | None:
    """The files of a commit that the hub's client fetched before, all or some; None if it fetched none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, repo_type=kind, revision=commit, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
