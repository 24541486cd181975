"""The generated answer contains the right one."""

from automixalign.scoring.verifiers.registry import register
from automixalign.scoring.verifiers.verifier import Generated, Verifier


@register("contains")
class Contains(Verifier):
    """The answer contains the right one, without regard to case."""

    def passes(self, generated: Generated) -> bool:
        """Search for the right answer."""
        return generated.answer.strip().casefold() in generated.output.casefold()
