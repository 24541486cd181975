"""How many bytes a checkpoint has."""

WEIGHT_BYTES = 4
"""Trained weights are fp32."""
STATE_BYTES = 2 * 4
"""AdamW's two moments of a weight, in fp32."""


def checkpoint_bytes(trained: int, *, extra_copies: int = 0) -> int:
    """Bytes of a checkpoint, without the random state and logs, which together have less than a megabyte.

    Args:
        trained: number of trained parameters. Frozen ones are not in a checkpoint.
        extra_copies: of the weights: one for `average_iterates`, one for `keep: best`.
    """
    return trained * (WEIGHT_BYTES * (1 + extra_copies) + STATE_BYTES)
