"""The warning about a specialist that has memorised its training pairs."""

from automixalign.config.training import specialist_name


def memorisation_warning(task: str, memorisation: float, warn_gap: float, cross_fit: bool) -> str | None:
    """What is wrong with a specialist, and what to do; None if it has not memorised its training pairs.

    Args:
        task: the task of the specialist.
        memorisation: mean loss of the held-out pairs minus mean loss of the training pairs, in nats. A manifest
            names it `gap`, which is not the gap between a generalist and a specialist.
        warn_gap: the largest value without a warning.
        cross_fit: whether specialists of the other half scored the training pairs.
    """
    if memorisation <= warn_gap:
        return None
    if cross_fit:
        remedy = "cross-fitting cannot help, because the splits differ; check the data"
    else:
        remedy = "train it less, give it more data, or set specialist_losses.cross_fit"
    return (
        f"{specialist_name(task)}: its held-out loss is {memorisation:.2f} above its training loss "
        f"(warn_gap is {warn_gap:g}): {remedy}"
    )
