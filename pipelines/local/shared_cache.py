"""Where the results of all runs are known."""

import os
import stat
from pathlib import Path

from automixalign.system.errors import ConfigError


def folder(named: Path | None) -> Path:
    """The folder that knows the results of all runs: as named, or in the user's cache folder.

    Raises:
        ConfigError: it cannot be made, or others can write to it: what stands in it is believed.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = named or caches / "automixalign" / "steps"
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        facts = place.stat()
    except OSError as error:
        raise ConfigError(f"--cache {place} cannot be written to: {error}; or give --no-cache") from error
    if facts.st_uid != os.getuid() or facts.st_mode & stat.S_IWOTH:
        raise ConfigError(
            f"--cache {place} is not yours alone, and what stands in it is believed: name another folder, or "
            "change its owner and rights"
        )
    return place
