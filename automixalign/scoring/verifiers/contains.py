"""The generated answer contains the right one."""

from automixalign.scoring.verifiers.registry import register


@register("contains")
def contains(output: str, answer: str) -> bool:
    """Search for the right answer, without regard to case."""
    return answer.strip().casefold() in output.casefold()
