"""Errors a user can act on: each says what is wrong, where, and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from automixalign.system.plain_text import printable


class AutoMixAlignError(Exception):
    """Base of every error that this library raises on purpose; its message is safe to print anywhere."""

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


def error_class(name: str) -> type[AutoMixAlignError] | None:
    """The class of an error that another process reports by name; None if it is not one of this module."""
    value = globals().get(name)
    return value if isinstance(value, type) and issubclass(value, AutoMixAlignError) else None


class ConfigError(AutoMixAlignError):
    """The configuration cannot be run; the message names the key."""


class DataError(AutoMixAlignError):
    """Preference data that cannot be used; the message names file, line and task."""


class ModelError(AutoMixAlignError):
    """A model or tokenizer that cannot be used; the message names the folder or source."""


class CacheError(AutoMixAlignError):
    """A cached table is incomplete or belongs to other data or another model."""


class TrainingError(AutoMixAlignError):
    """A training cannot continue, for example because the loss is not finite."""


class ProcessError(AutoMixAlignError):
    """One of several processes that share a job failed with an error of another package."""


class StorageError(AutoMixAlignError):
    """A file, object, publication or registered model that cannot be read or written; the message names it."""


class DamagedError(StorageError):
    """A file or object exists, but its content has changed."""


class UnreachableError(StorageError):
    """A server is down, busy or silent; the same call may work later."""


class ResourceError(AutoMixAlignError):
    """A stage needs more memory than it may use; the message names the stage and the settings to lower."""


class Interrupted(SystemExit):
    """A signal ends the command line; `message` says what is kept and how to go on.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.message = "interrupted"


@contextmanager
def named(name: str) -> Iterator[None]:
    """Begin the message of every `DataError` and `ModelError` with a name, unless it does so already."""
    prefix = f"{name}: "
    try:
        yield
    except (DataError, ModelError) as error:
        raise type(error)(prefix + str(error).removeprefix(prefix)) from error
