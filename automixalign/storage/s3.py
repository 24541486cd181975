"""Read and write S3 through boto3: credentials from its default chain, the endpoint from `AWS_ENDPOINT_URL`.

boto3 retries a failed request; `AWS_MAX_ATTEMPTS` limits the attempts, and the pauses between them grow to at
most 20 seconds. A server may be silent for a minute (`AMA_S3_TIMEOUT`, in seconds). Large objects are sent in
parts; memory never holds a whole object.

Server and boto3 check CRC32 sums in transit; `AWS_REQUEST_CHECKSUM_CALCULATION=when_required` switches them off
for a server without them. An upload stores the SHA-256 as metadata of the object, and a download is compared
with it.
"""

import hashlib
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from automixalign.storage import files
from automixalign.system.errors import DamagedError, StorageError, UnreachableError
from automixalign.system.plain_text import mask_secrets

SCHEME = "s3://"
SHA256 = "automixalign-sha256"
"""Metadata key of an object's SHA-256, in hexadecimal."""

TIMEOUT = "AMA_S3_TIMEOUT"
"""Environment variable: seconds that a server may be silent. botocore has no variable for it."""

_MAX_ATTEMPTS = 8
_MAX_QUICK_ATTEMPTS = 3
_CONNECT_SECONDS = 10
_READ_SECONDS = 60
_PART_BYTES = 16 << 20
_THREADS = 4

_CREDENTIALS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile that AWS_PROFILE names"
_SERVER = "check that the server is up and that AWS_ENDPOINT_URL is its address, then start again"
_ADVICE = {
    "InvalidAccessKeyId": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "InvalidToken": _CREDENTIALS,
    "ExpiredToken": _CREDENTIALS,
    "AuthorizationHeaderMalformed": "check AWS_DEFAULT_REGION",
    "PermanentRedirect": "check AWS_DEFAULT_REGION",
    "AccessDenied": "these credentials have no permission: change them or the bucket's policy",
    "403": f"{_CREDENTIALS}, and the bucket's policy",
    "NoSuchBucket": "create the bucket or name another",
    "404": "check bucket and key",
    "NoSuchKey": "check the key",
    "NotImplemented": "for a server without checksums set AWS_REQUEST_CHECKSUM_CALCULATION=when_required",
    "BadDigest": "the data changed in transit: start again",
}


_max_attempts = ContextVar("max_attempts", default=_MAX_ATTEMPTS)


@contextmanager
def fewer_attempts() -> Iterator[None]:
    """Give up sooner: for checks before a run, when a user waits and no work can be lost."""
    token = _max_attempts.set(_MAX_QUICK_ATTEMPTS)
    try:
        yield
    finally:
        _max_attempts.reset(token)


def is_uri(text: str) -> bool:
    """Whether a text names an object or a prefix on S3, well-formed or not."""
    return text.startswith(SCHEME)


def split_uri(uri: str) -> tuple[str, str]:
    """Split `s3://bucket/a/b` into `bucket` and `a/b`.

    Raises:
        StorageError: it names no bucket.
    """
    # Not with urllib: a key may contain `?` and `#`.
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if not is_uri(uri) or not bucket:
        raise StorageError(f"{uri} is not of the form s3://bucket/key")
    return bucket, key.lstrip("/")


def list_objects(uri: str) -> dict[str, str]:
    """List the objects at or below a URI: key -> ETag, in the order of the keys.

    Raises:
        StorageError: the bucket cannot be listed, or there is no such object.
    """
    bucket, prefix = split_uri(uri)
    etags: dict[str, str] = {}
    with _explained(f"{uri} cannot be listed"):
        for item in _pages(_client(), bucket, prefix):
            suffix = item["Key"].removeprefix(prefix)
            if not suffix or prefix.endswith("/") or not prefix or suffix.startswith("/"):
                etags[item["Key"]] = item["ETag"]
    if not etags:
        advice = "check the key, and that AWS_ENDPOINT_URL is its server's address"
        raise StorageError(f"{uri}: there is no such object; {advice}")
    return etags


def download(uri: str, folder: Path, leave_out: tuple[str, ...] = ()) -> Path:
    """Download an object, or all objects below a prefix, into `folder`; return the file or the folder.

    Args:
        uri: of the object or prefix.
        folder: where to write.
        leave_out: endings of the keys that are not needed.

    Raises:
        StorageError: there is no such object, it cannot be fetched, or the download differs from it.
    """
    bucket, prefix = split_uri(uri)
    keys = list_objects(uri)
    with _explained(f"{uri} cannot be fetched"):
        client = _client()
    root = folder.resolve()
    for key in keys:
        name = key.removeprefix(prefix).lstrip("/") or Path(key).name
        target = (root / name).resolve()
        if not target.is_relative_to(root):
            raise StorageError(f"s3://{bucket}/{key}: the key leads out of the folder")
        if not key.endswith(("/", *leave_out)):
            _download_object(client, bucket, key, target, sha256=None)
    return root / Path(prefix).name if list(keys) == [prefix] else root


class Prefix:
    """The objects below `s3://bucket/prefix/`, each named by the rest of its key.

    If the server or the network fails, every method raises a `StorageError` with the object's URI.
    """

    def __init__(self, uri: str) -> None:
        self.bucket, prefix = split_uri(uri)
        self._prefix = f"{prefix.rstrip('/')}/" if prefix.strip("/") else ""
        with _explained(f"{uri} cannot be opened"):
            self._client = _client()

    def uri(self, name: str = "") -> str:
        """Return the URI of an object or, without a name, of the prefix."""
        return f"{SCHEME}{self.bucket}/{self._prefix}{name}"

    def sizes(self) -> dict[str, int]:
        """List every object: name -> bytes."""
        with _explained(f"{self.uri()} cannot be listed"):
            items = list(_pages(self._client, self.bucket, self._prefix))
        sizes = {item["Key"].removeprefix(self._prefix): item["Size"] for item in items}
        return {name: size for name, size in sizes.items() if name and not name.endswith("/")}

    def read(self, name: str) -> bytes | None:
        """Read a small object; None if it does not exist."""
        with _explained(f"{self.uri(name)} cannot be read"):
            answer = _unless("NoSuchKey", self._client.get_object, Bucket=self.bucket, Key=self._prefix + name)
            return None if answer is None else bytes(answer["Body"].read())

    def write(self, name: str, data: bytes) -> None:
        """Write a small object in one request."""
        with _explained(f"{self.uri(name)} cannot be written"):
            self._client.put_object(Bucket=self.bucket, Key=self._prefix + name, Body=data)

    def delete(self, name: str) -> None:
        """Delete an object if it exists."""
        with _explained(f"{self.uri(name)} cannot be deleted"):
            self._client.delete_object(Bucket=self.bucket, Key=self._prefix + name)

    def holds(self, name: str, size: int, sha256: str) -> bool:
        """Whether there is an object that was uploaded with this content."""
        with _explained(f"{self.uri(name)} cannot be read"):
            head = _unless("404", self._client.head_object, Bucket=self.bucket, Key=self._prefix + name)
        return head is not None and (head["ContentLength"], head["Metadata"].get(SHA256)) == (size, sha256)

    def upload(
        self,
        name: str,
        path: Path,
        size: int,
        sha256: str,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Upload a file, in parts if it is large, and check the size that the server reports.

        Args:
            name: the rest of the object's key.
            path: the file.
            size: its bytes.
            sha256: its SHA-256, which becomes metadata of the object.
            progress: called with the number of bytes that were sent since the last call, from several threads.
        """
        with _explained(f"{self.uri(name)} cannot be written"):
            self._client.upload_file(
                str(path),
                self.bucket,
                self._prefix + name,
                ExtraArgs={"Metadata": {SHA256: sha256}},
                Config=_transfer(),
                Callback=progress,
            )
        if not self.holds(name, size, sha256):
            raise StorageError(f"{self.uri(name)} differs from {path}; did the file change? start again")

    def fetch(self, name: str, target: Path, sha256: str) -> None:
        """Download an object to a file, which appears only if its content has this SHA-256."""
        _download_object(self._client, self.bucket, self._prefix + name, target, sha256=sha256)


def _unless(code: str, request: Callable[..., Any], **arguments: Any) -> Any:
    """Send a request; None if the server answers with this error code."""
    from botocore.exceptions import ClientError

    try:
        return request(**arguments)
    except ClientError as error:
        if error.response["Error"]["Code"] != code:
            raise
        return None


def _client() -> Any:
    import boto3
    from botocore.config import Config

    # A Config overrides the environment, so it sets only what the environment does not.
    retries: Any = {"mode": os.environ.get("AWS_RETRY_MODE", "standard")}
    if "AWS_MAX_ATTEMPTS" not in os.environ:
        retries["total_max_attempts"] = _max_attempts.get()
    timeout = _timeout_seconds()
    config = Config(retries=retries, connect_timeout=min(timeout, _CONNECT_SECONDS), read_timeout=timeout)
    return boto3.client("s3", config=config)


def _timeout_seconds() -> float:
    text = os.environ.get(TIMEOUT, str(_READ_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise StorageError(f"{TIMEOUT}: {text!r} is no number of seconds; give one above 0")
    return seconds


def _transfer() -> Any:
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(
        multipart_threshold=_PART_BYTES,
        multipart_chunksize=_PART_BYTES,
        max_concurrency=_THREADS,
        max_io_queue=32,  # pieces of 256 kB in memory before they are written to disk
        preferred_transfer_client="classic",  # the other client raises other errors
    )


def _pages(client: Any, bucket: str, prefix: str) -> Iterator[Any]:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        yield from page.get("Contents", [])


def _download_object(client: Any, bucket: str, key: str, target: Path, sha256: str | None) -> None:
    uri = f"{SCHEME}{bucket}/{key}"
    with _explained(f"{uri} cannot be fetched"):
        head = client.head_object(Bucket=bucket, Key=key)
        with files.replacing(target) as temporary:
            client.download_file(bucket, key, str(temporary), Config=_transfer())
            _verify(uri, temporary, head, sha256)


def _verify(uri: str, path: Path, head: dict[str, Any], sha256: str | None) -> None:
    """Compare a download with the object's size and SHA-256, or without a SHA-256 with the MD5 in its ETag.

    Raises:
        DamagedError: it differs.
    """
    sha256 = sha256 or head["Metadata"].get(SHA256)
    etag = head["ETag"].strip('"')
    # The ETag of an object that was sent in parts or encrypted with an own key is not its MD5.
    etag_is_md5 = (
        re.fullmatch("[0-9a-f]{32}", etag)
        and head.get("ServerSideEncryption") in (None, "AES256")
        and "SSECustomerAlgorithm" not in head
    )
    size = path.stat().st_size
    if size != head["ContentLength"]:
        fault = f"{size} bytes arrived of {head['ContentLength']}"
    elif sha256 and (actual := files.digest(path)) != sha256:
        fault = f"its SHA-256 is {actual}, not {sha256}"
    elif not sha256 and etag_is_md5 and (actual := _md5(path)) != etag:
        fault = f"its MD5 is {actual}, not {etag}"
    else:
        return
    advice = "start again; if this repeats, delete the object and upload it again"
    raise DamagedError(f"{uri} is not what was stored: {fault}; {advice}")


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@contextmanager
def _explained(failure: str) -> Iterator[None]:
    """Replace boto3's errors by a `StorageError`: what failed, why, and what to do.

    It is an `UnreachableError` if the server is down, busy or silent.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    # ValueError: the endpoint is no URL, a header cannot be sent; OSError: the disk is full.
    except (Boto3Error, BotoCoreError, ClientError, ValueError, OSError) as error:
        reason = getattr(error, "last_exception", None) or error  # of a transfer's last attempt
        advice = _advice(error)
        message = f"{failure}: {reason}; {advice}".removesuffix("; ")
        clean = mask_secrets(message)
        kind = UnreachableError if advice == _SERVER else StorageError
        # A traceback would show the cause's message, with the secret.
        raise kind(clean) from (error if clean == message else None)


def _advice(error: BaseException) -> str:
    from botocore import exceptions, parsers

    # boto3 raises an error of its own while it handles the server's.
    for each in (error, getattr(error, "last_exception", None), error.__cause__, error.__context__):
        if isinstance(each, exceptions.ClientError):
            code = str(each.response.get("Error", {}).get("Code", ""))
            status = each.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return _ADVICE.get(code, _SERVER if status >= 500 else "")
        if isinstance(
            each,
            (exceptions.NoCredentialsError, exceptions.PartialCredentialsError, exceptions.ProfileNotFound),
        ):
            return _CREDENTIALS
        if isinstance(
            each, (exceptions.ConnectionError, exceptions.HTTPClientError, exceptions.IncompleteReadError)
        ):
            return _SERVER
        if isinstance(each, parsers.ResponseParserError):
            return "check that AWS_ENDPOINT_URL is the address of an S3 server"
    return "check AWS_ENDPOINT_URL" if "endpoint" in str(error).lower() else ""
