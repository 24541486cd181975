"""`ama schema`."""

from pathlib import Path
from typing import Annotated

import typer

from automixalign.system.errors import ConfigError


def schema(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="File of the schema. [default: stdout]"),
    ] = None,
) -> None:
    """Print the JSON Schema of a configuration, with which editors complete and check its keys.

    Editors with a YAML language server, such as VS Code with the YAML extension, find it by the first line of
    a configuration: `# yaml-language-server: $schema=configuration.schema.json`.

    Example:

        ama schema --output configuration.schema.json
    """
    from automixalign.preflight.json_schema import schema_text
    from automixalign.storage import files

    if output is None:
        typer.echo(schema_text(), nl=False)
        return
    try:
        files.write_text(output, schema_text())
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be written: {error.strerror}") from error
