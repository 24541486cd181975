"""A coordinate search over positive weights, such as the task weights of a merge.

It is a compass search in the logarithms of the weights, which needs no gradient
(Kolda, Lewis and Torczon 2003, https://doi.org/10.1137/S003614450242889).
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

STEPS = (4, 2, 1)
"""Quarters of a doubling: a step multiplies or divides a weight by 2, then by 1.41, then by 1.19."""


class Try(NamedTuple):
    """Weights that were scored; a smaller score is better."""

    weights: dict[str, float]
    score: float


def coordinate_search(
    score: Callable[[Mapping[str, float]], float], start: Mapping[str, float], tries: int, scale: bool
) -> list[Try]:
    """Minimise a function of positive weights by changing one of them at a time.

    A sweep divides and multiplies each weight in turn by the step, and keeps what lowers the score. It repeats
    a change while the score falls. After a sweep without a gain, the next smaller step follows; after the
    smallest, the search ends. No weights are scored twice.

    Args:
        score: the function.
        start: name -> weight of the first try.
        tries: the largest number of calls of `score`.
        scale: whether a common factor of all weights changes the score. Such a factor is then the first
            coordinate.

    Returns:
        The tries in their order. The first with the smallest score is the result.
    """
    names, tried = list(start), dict[tuple[int, ...], Try]()

    def try_(exponents: tuple[int, ...]) -> float:
        key = exponents if scale else tuple(exponent - exponents[0] for exponent in exponents)
        if key not in tried:
            if len(tried) == tries:
                return float("inf")
            weights = {
                name: start[name] * 2 ** (at / STEPS[0]) for name, at in zip(names, exponents, strict=True)
            }
            tried[key] = Try(weights, score(weights))
        return tried[key].score

    every, single = tuple(range(len(names))), [(number,) for number in range(len(names))]
    coordinates = dict.fromkeys([every, *single] if scale else single)
    best = (0,) * len(names)
    lowest = try_(best)
    for step in STEPS:
        gained = True
        while gained:
            gained = False
            for coordinate in coordinates:
                for change in (-step, step):
                    while True:
                        moved = tuple(at + change * (number in coordinate) for number, at in enumerate(best))
                        if (found := try_(moved)) >= lowest:
                            break
                        best, lowest, gained = moved, found, True
    return list(tried.values())
