"""The generated answer equals the right one."""

from automixalign.scoring.verifiers.registry import register
from automixalign.scoring.verifiers.verifier import Generated, Verifier


@register("exact")
class Exact(Verifier):
    """The whole answer equals the right one, without the blanks around both."""

    def passes(self, generated: Generated) -> bool:
        """Compare the texts."""
        return generated.output.strip() == generated.answer.strip()
