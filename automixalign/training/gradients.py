"""How large and how noisy the gradient of a task is, from the gradients of single pairs."""

from collections.abc import Iterable, Sequence

import torch
from accelerate import Accelerator


def gradient_moments(
    losses: Iterable[torch.Tensor],
    parameters: Sequence[torch.nn.Parameter],
    pairs: int,
    accelerator: Accelerator,
) -> tuple[float, float]:
    """Estimate the squared norm and the variance of a task's gradient, both without bias.

    With the gradients g_z of n pairs, the variance is sum_z ||g_z - mean||^2 / (n - 1). The squared norm is
    ||mean||^2 - variance / n, because the noise of the mean adds variance / n. It can be negative.

    Args:
        losses: loss of each pair of this process, a scalar each. One graph exists at a time.
        parameters: the gradient is with respect to these; each process has all of them.
        pairs: n, the pairs of all processes, drawn independently.
        accelerator: adds up the processes.

    Returns:
        Estimates of ||grad L||^2 and of sigma^2 = E ||g_z - grad L||^2.
    """
    total = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]
    squares = torch.zeros((), dtype=torch.float64, device=parameters[0].device)
    for loss in losses:
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for of_parameter, gradient in zip(total, gradients, strict=True):
            if gradient is not None:
                of_parameter.add_(gradient)
                squares += _squared_norm(gradient)
    total, squares = accelerator.reduce([total, squares], "sum")
    mean = float(sum(map(_squared_norm, total))) / pairs**2
    variance = (float(squares) - pairs * mean) / (pairs - 1)
    return mean - variance / pairs, variance


def _squared_norm(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float().square().sum(dtype=torch.float64)
