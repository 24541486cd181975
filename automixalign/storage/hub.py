"""What stands behind a name on the Hugging Face hub now: its commit, by which a cached result is known."""

from pathlib import Path
from typing import Literal


def commit_of(repo: str, kind: Literal["model", "dataset"], revision: str | None = None) -> str | None:
    """The commit that a repository's revision is at.

    Where the hub cannot be asked, it is that of the copy on this machine, which is then what will be loaded.

    Returns:
        None where there is neither: loading it says why.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        return str(HfApi().repo_info(repo, repo_type=kind, revision=revision).sha)
    except HFValidationError:  # no repository can have this name
        return revision
    except (OfflineModeIsEnabled, HfHubHTTPError, OSError):  # OSError: no network
        return _copy_here(repo, kind, revision)


def _copy_here(repo: str, kind: str, revision: str | None) -> str | None:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    place = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type=kind)
    reference = place / "refs" / (revision or "main")
    return reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
