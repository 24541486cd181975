"""The generated answer equals the right one."""

from automixalign.scoring.verifiers.registry import register


@register("exact")
def is_equal(output: str, answer: str) -> bool:
    """Compare without the blanks around both."""
    return output.strip() == answer.strip()
