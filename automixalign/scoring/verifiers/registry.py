"""The registry of verifiers.

To add a verifier to this project, write a module in this package and decorate a function with
`register("name")`. Another package adds its own through an entry point:

    [project.entry-points."automixalign.verifiers"]
    polite = "my_package.verifiers:is_polite"
"""

from collections.abc import Callable
from functools import cache
from typing import TypeAlias

from automixalign.system.plugins import Plugins

Verifier: TypeAlias = Callable[[str, str], bool]
"""Takes the generated and the right answer; returns whether the generated one passes."""

_verifiers: Plugins[Verifier] = Plugins("verifier", __package__)
register = _verifiers.register
registered_verifiers = cache(_verifiers.load)
