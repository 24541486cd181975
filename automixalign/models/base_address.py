"""Where other programs find the base model of an adapter, from any folder and on any day."""

from pathlib import Path
from typing import NamedTuple

from automixalign.config.models import BaseModelSpec
from automixalign.config.sources import HubSource, LocalSource, PackageSource, parse_base_model
from automixalign.storage import files

FILE = "base_model.json"
"""In the folder of the reference model."""


class BaseAddress(NamedTuple):
    """The address of a base model, as an adapter names it."""

    name: str
    """Hub id, or absolute path of a folder."""
    revision: str | None
    """Commit of the hub id."""

    @property
    def is_local(self) -> bool:
        """Whether only this machine knows the address."""
        return Path(self.name).is_absolute()

    def write(self, reference: Path) -> None:
        """Write the address into the folder of the reference model."""
        files.write_json(reference / FILE, self._asdict())


def address_of(spec: BaseModelSpec) -> BaseAddress | None:
    """The address of a base model; None if transformers loads it from no address."""
    source = parse_base_model(spec.source, spec.revision)
    if isinstance(source, HubSource):
        return BaseAddress(source.text, spec.revision)
    if isinstance(source, LocalSource) and not isinstance(source, PackageSource) and source.path.is_dir():
        return BaseAddress(str(source.path.absolute()), None)
    return None


def read_address(reference: Path) -> BaseAddress | None:
    """The address in the folder of a reference model; None if it has none."""
    file = reference / FILE
    return BaseAddress(**files.read_json(file)) if file.is_file() else None
