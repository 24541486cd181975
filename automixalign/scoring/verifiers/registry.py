"""The registry of verifiers.

To add a verifier to this project, write a module in this package and decorate its class with
`register("name")`. Another package adds its own through an entry point:

    [project.entry-points."automixalign.verifiers"]
    polite = "my_package.verifiers:Polite"
"""

from functools import cache

from automixalign.config.data import VerifierSpec
from automixalign.scoring.verifiers.verifier import Verifier
from automixalign.system.plugins import Plugins

_verifiers: Plugins[type[Verifier]] = Plugins("verifier", __package__, base=Verifier)
register = _verifiers.register
registered_verifiers = cache(_verifiers.load)


def make_verifier(spec: VerifierSpec) -> Verifier:
    """The verifier that a task names.

    Raises:
        ConfigError: there is no such verifier, or it has no such option.
    """
    return spec.make("verifier", registered_verifiers())
