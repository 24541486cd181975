"""When a training saves a checkpoint."""

import time
from collections.abc import Callable


class Schedule:
    """Every few optimiser steps, and when some minutes have passed since the last checkpoint.

    Args:
        every: optimiser steps; 0 for no limit in steps.
        minutes: minutes; 0 for no limit in time.
        clock: the time in seconds.
    """

    def __init__(self, every: int = 0, minutes: float = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self.every, self.minutes, self._clock = every, minutes, clock
        self._last = clock()

    def is_due(self, step: int) -> bool:
        """Whether to save a checkpoint after a step."""
        late = self.minutes > 0 and self._clock() - self._last >= 60 * self.minutes
        return late or (self.every > 0 and step % self.every == 0)

    def restart(self) -> None:
        """Count the minutes from now: the training begins, or saves a checkpoint."""
        self._last = self._clock()
