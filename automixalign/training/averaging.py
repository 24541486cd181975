"""The mean of the policies along a training. It converges where the last iterate circles around the saddle."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.optim.swa_utils import get_swa_multi_avg_fn

from automixalign.training.parameters import Tensors, load_into, numbered

FILE = "average.safetensors"
_update_mean = get_swa_multi_avg_fn()  # type: ignore[no-untyped-call]


class IterateAverage:
    """Running mean of parameters, in their own precision (Polyak & Juditsky 1992; arXiv 1803.05407).

    Args:
        parameters: the trained parameters of a policy.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.mean = [parameter.detach().clone() for parameter in self.parameters]
        self.count = 0

    @torch.no_grad()
    def add(self) -> None:
        """Add the current values of the parameters to the mean."""
        values = [parameter.detach() for parameter in self.parameters]
        if self.count:
            _update_mean(self.mean, values, self.count)
        else:
            torch._foreach_copy_(self.mean, values)
        self.count += 1

    @torch.no_grad()
    def install(self) -> None:
        """Set the parameters to their mean, unless nothing was added."""
        if self.count:
            torch._foreach_copy_(list[torch.Tensor](self.parameters), self.mean)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Set the parameters to their mean in the context; afterwards they have their own values again."""
        before = [parameter.detach().clone() for parameter in self.parameters]
        self.install()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(list[torch.Tensor](self.parameters), before)

    def tensors(self) -> Tensors:
        """The mean, for the file `FILE` of a checkpoint; the caller keeps `count`."""
        return numbered(self.mean)

    def load(self, folder: Path, count: int) -> None:
        """Continue from a checkpoint.

        Raises:
            TrainingError: the file is missing, damaged, or of other parameters.
        """
        load_into(self.mean, folder / FILE)
        self.count = count
