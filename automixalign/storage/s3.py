"""S3 through boto3: credentials from its default chain, the endpoint from `AWS_ENDPOINT_URL`.

Requests are retried a bounded number of times (`AWS_MAX_ATTEMPTS` says how often), with growing pauses of at
most 20 seconds, and given up where the server is silent for a minute (`AMA_S3_TIMEOUT`, seconds). Large objects
go in parts, and nothing is held in memory as a whole. In transit the server and boto3 check CRC32 sums (for a
server that does not know them, `AWS_REQUEST_CHECKSUM_CALCULATION=when_required` turns them off); an object
uploaded here carries its SHA-256 as metadata besides, which every download is held against.
"""

import hashlib
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from automixalign.storage import files
from automixalign.system.errors import DamagedError, StorageError, UnreachableError
from automixalign.system.plain_text import mask_secrets

SCHEME = "s3://"
SHA256 = "automixalign-sha256"
"""Key of the metadata that hold an object's SHA-256 in hexadecimal."""

TIMEOUT = "AMA_S3_TIMEOUT"
"""The environment variable that says for how many seconds a server may be silent; botocore has none."""

_ATTEMPTS = 8
_FIRST_ATTEMPTS = 3
_CONNECT_SECONDS = 10
_READ_SECONDS = 60
_PART = 16 << 20
_THREADS = 4

_CREDENTIALS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile that AWS_PROFILE names"
_SERVER = "see that the server is up and that AWS_ENDPOINT_URL is its address, then start again"
_ADVICE = {
    "InvalidAccessKeyId": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "InvalidToken": _CREDENTIALS,
    "ExpiredToken": _CREDENTIALS,
    "AuthorizationHeaderMalformed": "check AWS_DEFAULT_REGION",
    "PermanentRedirect": "check AWS_DEFAULT_REGION",
    "AccessDenied": "these credentials may not do it: change them or the bucket's policy",
    "403": f"{_CREDENTIALS}, and the bucket's policy",
    "NoSuchBucket": "create the bucket or name another",
    "404": "check bucket and key",
    "NoSuchKey": "check the key",
    "NotImplemented": "for a server without checksums set AWS_REQUEST_CHECKSUM_CALCULATION=when_required",
    "BadDigest": "something on the way changes what is sent: start again",
}


_attempts = ContextVar("attempts", default=_ATTEMPTS)


@contextmanager
def first_look() -> Iterator[None]:
    """Give up sooner than usual: nothing is lost yet, and somebody waits for the answer."""
    token = _attempts.set(_FIRST_ATTEMPTS)
    try:
        yield
    finally:
        _attempts.reset(token)


def is_uri(text: str) -> bool:
    """Whether a text names an object or a prefix on S3, well-formed or not."""
    return text.startswith(SCHEME)


def split_uri(uri: str) -> tuple[str, str]:
    """`s3://bucket/a/b` -> (`bucket`, `a/b`).

    Raises:
        StorageError: there is no bucket in it.
    """
    # Not by urllib: a key may hold `?` and `#`.
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if not is_uri(uri) or not bucket:
        raise StorageError(f"{uri} is not of the form s3://bucket/key")
    return bucket, key.lstrip("/")


def list_objects(uri: str) -> dict[str, str]:
    """The objects at or below a URI: key -> ETag, in the order of their keys.

    Raises:
        StorageError: the bucket cannot be listed, or nothing is there.
    """
    bucket, prefix = split_uri(uri)
    found: dict[str, str] = {}
    with _explained(f"{uri} cannot be listed"):
        for item in _pages(_client(), bucket, prefix):
            below = item["Key"].removeprefix(prefix)
            if not below or prefix.endswith("/") or not prefix or below.startswith("/"):
                found[item["Key"]] = item["ETag"]
    if not found:
        advice = "check the key, and that AWS_ENDPOINT_URL is its server's address"
        raise StorageError(f"{uri}: there is nothing at that place; {advice}")
    return found


def download(uri: str, folder: Path) -> Path:
    """Fetch an object, or everything below a prefix, into `folder`; return the file or the folder.

    Every file is whole or absent.

    Raises:
        StorageError: nothing is there, it cannot be fetched, or what arrives is not what was stored.
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
        if not key.endswith("/"):
            _download_object(client, bucket, key, target, None)
    return root / Path(prefix).name if list(keys) == [prefix] else root


class Prefix:
    """The objects below `s3://bucket/prefix/`, each called by the rest of its key.

    Every method raises `StorageError` with the object's URI where the server or the network fails.
    """

    def __init__(self, uri: str) -> None:
        self.bucket, prefix = split_uri(uri)
        self._prefix = f"{prefix.rstrip('/')}/" if prefix.strip("/") else ""
        with _explained(f"{uri} cannot be opened"):
            self._client = _client()

    def uri(self, name: str = "") -> str:
        """The full name of an object, or of the prefix."""
        return f"{SCHEME}{self.bucket}/{self._prefix}{name}"

    def sizes(self) -> dict[str, int]:
        """Every object: name -> bytes. Empty if nothing is there."""
        with _explained(f"{self.uri()} cannot be listed"):
            items = list(_pages(self._client, self.bucket, self._prefix))
        found = {item["Key"].removeprefix(self._prefix): item["Size"] for item in items}
        return {name: size for name, size in found.items() if name and not name.endswith("/")}

    def read(self, name: str) -> bytes | None:
        """A small object, None if there is none."""
        from botocore.exceptions import ClientError

        with _explained(f"{self.uri(name)} cannot be read"):
            try:
                answer = self._client.get_object(Bucket=self.bucket, Key=self._prefix + name)
            except ClientError as error:
                if error.response["Error"]["Code"] == "NoSuchKey":
                    return None
                raise
            return bytes(answer["Body"].read())

    def write(self, name: str, data: bytes) -> None:
        """Write a small object at once."""
        with _explained(f"{self.uri(name)} cannot be written"):
            self._client.put_object(Bucket=self.bucket, Key=self._prefix + name, Body=data)

    def delete(self, name: str) -> None:
        """Delete an object; nothing happens if there is none."""
        with _explained(f"{self.uri(name)} cannot be deleted"):
            self._client.delete_object(Bucket=self.bucket, Key=self._prefix + name)

    def holds(self, name: str, size: int, sha256: str) -> bool:
        """Whether there is an object that was uploaded with this content."""
        from botocore.exceptions import ClientError

        with _explained(f"{self.uri(name)} cannot be read"):
            try:
                head = self._client.head_object(Bucket=self.bucket, Key=self._prefix + name)
            except ClientError as error:
                if error.response["Error"]["Code"] == "404":
                    return False
                raise
        return (head["ContentLength"], head["Metadata"].get(SHA256)) == (size, sha256)

    def upload(self, name: str, path: Path, size: int, sha256: str) -> None:
        """Write a file, in parts if it is large, and see that the server holds as much as was sent."""
        with _explained(f"{self.uri(name)} cannot be written"):
            self._client.upload_file(
                str(path),
                self.bucket,
                self._prefix + name,
                ExtraArgs={"Metadata": {SHA256: sha256}},
                Config=_transfer(),
            )
        if not self.holds(name, size, sha256):
            raise StorageError(f"{self.uri(name)} is not as {path} was: was the file changed? start again")

    def fetch(self, name: str, target: Path, sha256: str) -> None:
        """Read an object into a file, which appears only if its content has this SHA-256."""
        _download_object(self._client, self.bucket, self._prefix + name, target, sha256)


def _client() -> Any:
    import boto3
    from botocore.config import Config

    # What a Config says is stronger than the environment, so that it may say only what is not said there.
    retries: Any = {"mode": os.environ.get("AWS_RETRY_MODE", "standard")}
    if "AWS_MAX_ATTEMPTS" not in os.environ:
        retries["total_max_attempts"] = _attempts.get()
    silent = _silence()
    config = Config(retries=retries, connect_timeout=min(silent, _CONNECT_SECONDS), read_timeout=silent)
    return boto3.client("s3", config=config)


def _silence() -> float:
    """For how many seconds a server may be silent."""
    text = os.environ.get(TIMEOUT, str(_READ_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise StorageError(f"{TIMEOUT}: {text!r} is no number of seconds")
    return seconds


def _transfer() -> Any:
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(
        multipart_threshold=_PART,
        multipart_chunksize=_PART,
        max_concurrency=_THREADS,
        max_io_queue=32,  # pieces of 256 kB that wait to be written to disk
        preferred_transfer_client="classic",  # the other one raises errors of its own
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
    """Hold a file against its size and the SHA-256 it should have, else the MD5 that servers give as ETag.

    Raises:
        DamagedError: it is another one.
    """
    sha256 = sha256 or head["Metadata"].get(SHA256)
    etag = head["ETag"].strip('"')
    # An object of several parts, or one under a key of its own, has an ETag that is not its MD5.
    plain = re.fullmatch("[0-9a-f]{32}", etag) and head.get("ServerSideEncryption") in (None, "AES256")
    size = path.stat().st_size
    if size != head["ContentLength"]:
        fault = f"{size} bytes arrived of {head['ContentLength']}"
    elif sha256 and (found := files.digest(path)) != sha256:
        fault = f"its SHA-256 is {found}, not {sha256}"
    elif not sha256 and plain and "SSECustomerAlgorithm" not in head and (found := _md5(path)) != etag:
        fault = f"its MD5 is {found}, not {etag}"
    else:
        return
    advice = "start again; if it stays so, delete the object and store it anew"
    raise DamagedError(f"{uri} is not what was stored: {fault}; {advice}")


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Raise a `StorageError` in place of boto3's errors: what failed, why, and what to do.

    It is an `UnreachableError` where the server is down, busy or silent.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    # ValueError: the endpoint is no URL, a header cannot be sent; OSError: the disk is full.
    except (Boto3Error, BotoCoreError, ClientError, ValueError, OSError) as error:
        reason = getattr(error, "last_exception", None) or error  # where a transfer has tried several times
        advice = _advice(error)
        message = f"{what}: {reason}; {advice}".removesuffix("; ")
        clean = mask_secrets(message)
        kind = UnreachableError if advice == _SERVER else StorageError
        # The cause's own message would stand in a traceback too.
        raise kind(clean) from (error if clean == message else None)


def _advice(error: BaseException) -> str:
    import botocore.parsers
    from botocore import exceptions as known

    # boto3 raises its own error while it handles the server's.
    for each in (error, getattr(error, "last_exception", None), error.__cause__, error.__context__):
        if isinstance(each, known.ClientError):
            code = str(each.response.get("Error", {}).get("Code", ""))
            status = each.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return _ADVICE.get(code, _SERVER if status >= 500 else "")
        if isinstance(each, (known.NoCredentialsError, known.PartialCredentialsError, known.ProfileNotFound)):
            return _CREDENTIALS
        if isinstance(each, (known.ConnectionError, known.HTTPClientError, known.IncompleteReadError)):
            return _SERVER
        if isinstance(each, botocore.parsers.ResponseParserError):
            return "see that AWS_ENDPOINT_URL is an S3 server's address"
    return "check AWS_ENDPOINT_URL" if "endpoint" in str(error).lower() else ""
