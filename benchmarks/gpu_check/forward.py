"""Forward passes of the product on pairs, as training and scoring make them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from automixalign.scoring.logps import layout
from automixalign.scoring.logps.batch import PairBatch, PairIds
from benchmarks.gpu_check.trainings import loading_of

Batches = Callable[[Sequence[PairIds]], PairBatch]


@contextmanager
def attending(model: Any, way: str) -> Iterator[Batches]:
    """Give a model a way of attention, in the context; yield what makes its batches on the device."""
    with layout.attending(model, loading_of(way)) as arranged:
        yield lambda pairs: arranged.batch(pairs).to(model.device)


def ids_of(rows: Sequence[dict[str, Any]]) -> list[PairIds]:
    """The token ids of pairs."""
    return [PairIds(*(row[f"{name}_ids"] for name in PairIds._fields)) for row in rows]
