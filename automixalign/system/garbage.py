"""Look for unreachable cycles of objects less often, while millions of small objects come and go."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_THRESHOLDS = (50_000, 20, 1000)


@contextmanager
def rare_collections() -> Iterator[None]:
    """Make Python's garbage collector rare in this context, also in processes that are forked in it.

    It would visit the objects of torch and transformers again and again, which takes a sixth of the time of
    tokenising. Objects without cycles are freed at once, as always.
    """
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
