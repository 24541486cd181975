"""The registry of row formats.

To add a format to this project, write a module in this package and decorate its class with
`register("name")`. Another package adds its own through an entry point:

    [project.entry-points."automixalign.row_formats"]
    my-layout = "my_package.formats:MyLayout"
"""

from functools import cache

from automixalign.config.data import FormatSpec, SourceSpec
from automixalign.data.row_formats.row_format import RowFormat
from automixalign.system.errors import ConfigError
from automixalign.system.plugins import Plugins
from automixalign.system.schema import did_you_mean

_formats: Plugins[type[RowFormat]] = Plugins("row format", __package__, base=RowFormat)
register = _formats.register
registered_formats = cache(_formats.load)


def make_format(spec: FormatSpec) -> RowFormat:
    """The row format that a source names.

    Raises:
        ConfigError: there is no such format, or it has no such option.
    """
    return spec.make("row format", registered_formats())


def check_columns(spec: SourceSpec) -> None:
    """Refuse a key of `columns` that the source's format does not read.

    Raises:
        ConfigError: naming the key and the fields that the format reads; or the format itself is wrong.
    """
    row_format = make_format(spec.format_spec)
    fields = [name for name in row_format.columns if name not in row_format.marks]
    for name in spec.columns or {}:
        if name not in fields:
            raise ConfigError(
                f"columns.{name:.80}: the row format {spec.format_spec.name} reads no such field"
                f"{did_you_mean(name, fields)}; "
                f"it reads: {', '.join(fields)}"
            )
