"""Makes `benchmarks/results/speed.md`: the goals for speed, and the committed results of the benchmarks.

    python -m benchmarks.speed

reads `benchmarks/results/speed/NAME.json`, which the benchmarks write with `--json`.
"""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from automixalign.storage import files

RESULTS = Path(__file__).parent / "results" / "speed"
PAGE = RESULTS.with_suffix(".md")
_STEP, _RUN, _AGAIN = "33M", "first run", "the same command again"


class Goal(NamedTuple):
    """A limit for a number of a benchmark's results."""

    benchmark: str
    what: str
    sign: str
    """`<=` or `>=`."""
    limit: float
    measure: Callable[[Any], float]

    def met(self, value: float) -> bool:
        """Whether a value keeps the limit."""
        return value <= self.limit if self.sign == "<=" else value >= self.limit


def _speed(result: Any, kind: str, peer: str) -> float:
    kinds = result[_STEP]["kinds"]
    return float(kinds[kind]["tokens_per_second"] / kinds[peer]["tokens_per_second"])


def _of_gemm(result: Any, tokens: str) -> float:
    size = result[_STEP]
    speed = size["kinds"]["standard"]["tokens_per_second"] * size[tokens] / size["tokens"]
    return float(6 * size["parameters"] * speed / size["gemm"][size["precision"]])


def _last(result: Any, way: str, key: str, position: int = -1) -> float:
    return float([each[key] for each in result if each["way"] == way][position])


def _rate(result: Any) -> float:
    return _last(result, "prepare_data", "rows_per_second") / _last(result, "peer", "rows_per_second")


def _memory(result: Any) -> float:
    last, before = (_last(result, "prepare_data", "peak_megabytes", position) for position in (-1, -2))
    return last / before


def _exponent(result: Any, axis: str) -> float:
    (fits,) = (each["exponents"] for each in result if each["axis"] == axis)
    return float(max(fit["cost"] for fit in fits.values()))


def _processes(result: Any) -> float:
    medians = [statistics.median(steps[1:]) for steps in result["seconds"].values()]
    return medians[0] / medians[-1]


GOALS = (
    Goal(
        *("train_step", "33 M, tokens/s against TRL as shipped", ">=", 3),
        lambda result: _speed(result, "standard", "trl"),
    ),
    Goal(
        *("train_step", "against TRL tuned", ">=", 1.5), lambda result: _speed(result, "standard", "trl tuned")
    ),
    Goal(
        *("train_step", "6 N tokens of the pairs, of the GEMM rate", ">=", 0.6),
        lambda result: _of_gemm(result, "tokens"),
    ),
    Goal(
        *("train_step", "the same of the computed tokens", ">=", 0.6),
        lambda result: _of_gemm(result, "computed"),
    ),
    Goal(
        *("train_step", "AMA-R step against the standard step", "<=", 1.02),
        lambda result: 1 / _speed(result, "ama-r", "standard"),
    ),
    Goal(
        *("train_step", "AMA-S step against the standard step", "<=", 1.02),
        lambda result: 1 / _speed(result, "ama-s", "standard"),
    ),
    Goal(
        *("reference_pass", "pairs/s against TRL's precompute, the smallest ratio", ">=", 2),
        lambda result: min(each["seconds"]["trl"] / each["seconds"]["ours"] for each in result),
    ),
    Goal(
        *("merge", "wall against mergekit's command line, the largest ratio", "<=", 1.2),
        lambda result: max(each["ratio"]["wall"] for each in result),
    ),
    Goal(
        *("merge", "peak memory in largest tensor groups, the largest", "<=", 2),
        lambda result: max(each["ours"]["peak"] / each["group"] for each in result),
    ),
    Goal("data", "rows/s against raw load and tokenise, most rows", ">=", 1.0, _rate),
    Goal("data", "peak memory, most rows against a tenth of them", "<=", 1.1, _memory),
    Goal(
        *("dag", "first run's wall against its compute", "<=", 1.1),
        lambda result: result[_RUN]["wall"] / result[_RUN]["compute"],
    ),
    Goal(
        *("dag", "unchanged re-run against the first run", "<=", 0.05),
        lambda result: result[_AGAIN]["wall"] / result[_RUN]["wall"],
    ),
    Goal(
        *("scaling", "largest exponent of a stage's cost in rows", "<=", 1.05),
        lambda result: _exponent(result, "rows"),
    ),
    Goal(
        *("scaling", "largest exponent of a stage's cost in tasks", "<=", 1.05),
        lambda result: _exponent(result, "tasks"),
    ),
    Goal("processes", "two processes on two cores against one on one", ">=", 1.7, _processes),
)


_HEAD = """# Speed: goals and results

`python -m benchmarks.speed` makes this page from `speed/*.json`, which the benchmarks write with `--json`.
The machine had two cores of an AMD EPYC (Zen 5, AVX512-BF16), 24 GB, and no GPU. Ratios are of one run each,
with the peers in turn. The docstring of a benchmark explains its numbers.

| benchmark | what | goal | result | met |
| --- | --- | --- | --- | --- |
"""


def page() -> str:
    """The page, from the committed results."""
    rows = []
    for goal in GOALS:
        value = float(goal.measure(files.read_json(RESULTS / f"{goal.benchmark}.json")))
        limit = f"{'≤' if goal.sign == '<=' else '≥'} {goal.limit:g}"
        met = "yes" if goal.met(value) else "**no**"
        rows.append(f"| `{goal.benchmark}` | {goal.what} | {limit} | {value:.2f} | {met} |\n")
    return _HEAD + "".join(rows)


if __name__ == "__main__":
    files.write_text(PAGE, page())
    print(page())
