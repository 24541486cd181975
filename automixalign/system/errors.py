"""Errors a user can act on: each says what is wrong, where, and what to do."""

from automixalign.system.plain_text import shown


class AutoMixAlignError(Exception):
    """Base of every error this library raises on purpose; its message can be shown anywhere."""

    def __init__(self, message: str = "") -> None:
        super().__init__(shown(message))


def by_name(kind: str) -> type[AutoMixAlignError] | None:
    """The error of this name, which another process has told; None where it is none of ours."""
    found = globals().get(kind)
    return found if isinstance(found, type) and issubclass(found, AutoMixAlignError) else None


class ConfigError(AutoMixAlignError):
    """The configuration cannot be run; the message names the key."""


class DataError(AutoMixAlignError):
    """Preference data that cannot be used; the message names file, line and task."""


class ModelError(AutoMixAlignError):
    """A model or tokenizer that cannot be used; the message names the folder or source."""


class CacheError(AutoMixAlignError):
    """A cached table is incomplete or belongs to other data or another model."""


class TrainingError(AutoMixAlignError):
    """Training cannot go on, for example because the loss is not finite."""


class StorageError(AutoMixAlignError):
    """A file, object, publication or registered model that cannot be read or written; the message names it."""


class DamagedError(StorageError):
    """A file or object is there, but is not what was stored."""


class UnreachableError(StorageError):
    """A server that holds or is to hold something is down, busy or silent; the same may work later."""


class ResourceError(AutoMixAlignError):
    """A step needs more memory than it may have; the message says which, and what to lower."""
