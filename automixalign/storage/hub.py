"""The Hugging Face hub: commits, which identify cached results; local copies; uploads of models.

The hub's client takes its token from the environment (HF_TOKEN) or from `hf auth login`.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from automixalign.system.errors import StorageError, UnreachableError
from automixalign.system.plain_text import mask_secrets

SCHEME = "hf://"
_REPO = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_GIT_ATTRIBUTES = ".gitattributes"
"""The file that the hub itself puts into a new repository."""

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


def is_uri(text: str) -> bool:
    """Whether a text names a repository to write to, well-formed or not."""
    return text.startswith(SCHEME)


class ModelRepository:
    """A repository of a model, to upload to.

    Args:
        uri: `hf://ORG/NAME`.
        private: whether it is, or is to be, private.
        replace: whether its files may be replaced.

    Raises:
        StorageError: the URI has another form.
    """

    def __init__(self, uri: str, *, private: bool, replace: bool) -> None:
        self.id, self.private, self.replace = uri.removeprefix(SCHEME).rstrip("/"), private, replace
        if not _REPO.fullmatch(self.id):
            raise StorageError(f"{uri} is not of the form {SCHEME}ORG/NAME")

    def prepare(self) -> None:
        """Check before any work that `upload` will be allowed, and create the repository if there is none.

        Raises:
            StorageError: nobody is logged in; the repository has the other visibility, or has files and may not
                be replaced. `UnreachableError` if the hub does not answer.
        """
        from huggingface_hub import HfApi

        with _explained(f"{SCHEME}{self.id} cannot be written"):
            HfApi().whoami()
            HfApi().create_repo(self.id, private=self.private, exist_ok=True)
            info = HfApi().model_info(self.id)
        self._check_free([file.rfilename for file in info.siblings or []])
        if bool(info.private) != self.private:
            visibility = "private" if info.private else "public"
            raise StorageError(
                f"{SCHEME}{self.id} is {visibility}: give --{visibility}, or change its settings on the hub"
            )

    def upload(self, files: Mapping[str, Path], message: str) -> str:
        """Make these files the content of the repository, in one commit.

        Args:
            files: name in the repository -> local file.
            message: of the commit.

        Returns:
            The commit.

        Raises:
            StorageError: the repository has files and may not be replaced, or the hub refuses the new ones.
                `UnreachableError` if it does not answer.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

        api = HfApi()
        with _explained(f"{SCHEME}{self.id} cannot be written"):
            present = api.list_repo_files(self.id)
            self._check_free(present)
            stale = [name for name in present if name not in files and name != _GIT_ATTRIBUTES]
            commit = api.create_commit(
                self.id,
                [
                    *(CommitOperationDelete(name) for name in stale),
                    *(CommitOperationAdd(name, str(path)) for name, path in files.items()),
                ],
                commit_message=message,
            )
        return str(commit.oid)

    def _check_free(self, present: list[str]) -> None:
        others = [name for name in present if name != _GIT_ATTRIBUTES]
        if others and not self.replace:
            raise StorageError(
                f"{SCHEME}{self.id} has {len(others)} files, such as {others[0]}; name another repository, or "
                "give --replace"
            )


@contextmanager
def _explained(failure: str) -> Iterator[None]:
    """Replace the errors of the hub's client by a `StorageError`: what failed, why, and what to do."""
    from huggingface_hub import errors
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of its HTTP library

    try:
        yield
    except errors.LocalTokenNotFoundError as error:
        raise StorageError(f"{failure}: nobody is logged in; run `hf auth login`, or set HF_TOKEN") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status >= 500:
            raise UnreachableError(f"{failure}: {mask_secrets(str(error))}; try again later") from error
        advice = {401: "; check HF_TOKEN, or run `hf auth login`", 403: "; use a token that may write there"}
        raise StorageError(f"{failure}: {mask_secrets(str(error))}{advice.get(status, '')}") from error
    except (HTTPError, ConnectionError) as error:
        reason = mask_secrets(str(error))
        raise UnreachableError(
            f"{failure}: {reason}; check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
        ) from error
    except (ValueError, RuntimeError, OSError) as error:  # of the upload of large files
        raise StorageError(f"{failure}: {mask_secrets(str(error))}") from error
