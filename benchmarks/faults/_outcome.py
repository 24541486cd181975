"""What becomes of a fault: shared by the groups of outages."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from automixalign.system.errors import AutoMixAlignError
from benchmarks.faults.case import UnexpectedError


def refused(kind: type[AutoMixAlignError], call: Callable[[], object], *parts: str) -> str:
    """The message of the named error that a call ends in; each of `parts` must stand in it."""
    try:
        call()
    except AutoMixAlignError as error:
        seen = f"{type(error).__name__}: {error}"
        missing = [part for part in parts if part not in str(error)]
        if type(error) is not kind or missing:
            raise UnexpectedError(f"{seen} [wanted: {kind.__name__} with {missing}]") from error
        return seen
    except Exception as error:
        raise UnexpectedError(f"not one of ours: {type(error).__name__}: {error}") from error
    raise UnexpectedError("no error at all")


def see(condition: object, what: str) -> None:
    """Be surprised unless the condition holds."""
    if not condition:
        raise UnexpectedError(what)


@contextmanager
def environment(**values: str | None) -> Iterator[None]:
    """Environment variables for a while, None for those that must not be there; boto3 looks at them anew."""
    import boto3

    kept = {name: os.environ.get(name) for name in values}
    session = boto3.DEFAULT_SESSION
    try:
        _set(values)
        boto3.DEFAULT_SESSION = None
        yield
    finally:
        _set(kept)
        boto3.DEFAULT_SESSION = session


def _set(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
