"""S3 through boto3: credentials from its default chain, the endpoint from `AWS_ENDPOINT_URL`."""

from pathlib import Path

from automixalign.errors import DataError

SCHEME = "s3://"


def split_uri(uri: str) -> tuple[str, str]:
    """`s3://bucket/a/b` -> (`bucket`, `a/b`).

    Raises:
        DataError: there is no bucket in it.
    """
    # Not by urllib: a key may hold `?` and `#`.
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if not uri.startswith(SCHEME) or not bucket:
        raise DataError(f"{uri} is not of the form s3://bucket/key")
    return bucket, key.lstrip("/")


def list_objects(uri: str) -> dict[str, str]:
    """The objects at or below a URI: key -> ETag, in the order of their keys.

    Raises:
        DataError: the bucket cannot be listed, or nothing is there.
    """
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, prefix = split_uri(uri)
    found: dict[str, str] = {}
    try:
        pages = boto3.client("s3").get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=bucket, Prefix=prefix):
            for item in page.get("Contents", []):
                below = item["Key"].removeprefix(prefix)
                if not below or prefix.endswith("/") or not prefix or below.startswith("/"):
                    found[item["Key"]] = item["ETag"]
    except (BotoCoreError, ClientError, ValueError) as error:  # ValueError: the endpoint is no URL
        raise DataError(f"{uri} cannot be listed: {error}") from error
    if not found:
        raise DataError(f"{uri}: there is nothing at that place")
    return found


def download(uri: str, folder: Path) -> Path:
    """Fetch an object, or everything below a prefix, into `folder`; return the file or the folder.

    Raises:
        DataError: nothing is there, or it cannot be fetched.
    """
    import boto3
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, prefix = split_uri(uri)
    keys = list_objects(uri)
    client = boto3.client("s3")
    root = folder.resolve()
    for key in keys:
        name = key.removeprefix(prefix).lstrip("/") or Path(key).name
        target = (root / name).resolve()
        if not target.is_relative_to(root):
            raise DataError(f"s3://{bucket}/{key}: the key leads out of the folder")
        if key.endswith("/"):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            client.download_file(bucket, key, str(target))
        except (Boto3Error, BotoCoreError, ClientError) as error:
            raise DataError(f"s3://{bucket}/{key} cannot be fetched: {error}") from error
    return root / Path(prefix).name if list(keys) == [prefix] else root
