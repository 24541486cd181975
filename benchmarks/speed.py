"""The goals for speed, and what the last runs of the benchmarks say of them: `benchmarks/results/speed.md`.

    python -m benchmarks.speed

reads `benchmarks/results/speed/NAME.json`, which the benchmarks write with `--json`, and `NAME.before.json`,
the same from the code before it was made fast, and writes the page.
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
    """A number that a benchmark's results must keep to."""

    benchmark: str
    what: str
    limit: float
    most: bool
    """The limit is the most it may be; else the least."""
    found: Callable[[Any], float]

    def met(self, value: float) -> bool:
        """Whether a value keeps to it."""
        return value <= self.limit if self.most else value >= self.limit

    def shown(self, value: float | None) -> str:
        """A value as the page has it."""
        return "" if value is None else f"{value:.2f}"


def _speed(found: Any, kind: str, peer: str) -> float:
    kinds = found[_STEP]["kinds"]
    return float(kinds[kind]["tokens_per_second"] / kinds[peer]["tokens_per_second"])


def _of_gemm(found: Any, tokens: str) -> float:
    size = found[_STEP]
    speed = size["kinds"]["standard"]["tokens_per_second"] * size[tokens] / size["tokens"]
    return float(6 * size["parameters"] * speed / size["gemm"][size["precision"]])


def _longer(found: Any, kind: str) -> float:
    """A step's time for as many tokens, over the standard step's."""
    return 1 / _speed(found, kind, "standard")


def _worst_pass(found: Any) -> float:
    return float(min(each["seconds"]["trl"] / each["seconds"]["ours"] for each in found))


def _worst_merge(found: Any) -> float:
    return float(max(each["ratio"]["wall"] for each in found))


def _largest_merge(found: Any) -> float:
    return float(max(each["ours"]["peak"] / each["group"] for each in found))


def _data(found: Any, key: str, way: str) -> list[float]:
    return [each[key] for each in found if each["way"] == way]


def _rate(found: Any) -> float:
    ours, peer = (_data(found, "rows_per_second", way)[-1] for way in ("prepare_data", "peer"))
    return ours / peer


def _memory(found: Any) -> float:
    *_, before, last = _data(found, "peak_megabytes", "prepare_data")
    return last / before


def _exponent(found: Any, axis: str) -> float:
    (fits,) = (each["exponents"] for each in found if each["axis"] == axis)
    return float(max(fit["cost"] for fit in fits.values()))


def _processes(found: Any) -> float:
    medians = [statistics.median(steps[1:]) for steps in found["seconds"].values()]
    return medians[0] / medians[-1]


def _waste(found: Any) -> float:
    return float(found[_RUN]["wall"] / found[_RUN]["compute"])


def _again(found: Any) -> float:
    return float(found[_AGAIN]["wall"] / found[_RUN]["wall"])


GOALS = (
    Goal(
        "train_step",
        "33 M, tokens/s against TRL as shipped",
        3,
        False,
        lambda f: _speed(f, "standard", "trl"),
    ),
    Goal("train_step", "against TRL tuned", 1.5, False, lambda f: _speed(f, "standard", "trl tuned")),
    Goal(
        "train_step",
        "6 N tokens of the pairs, of the GEMM rate",
        0.6,
        False,
        lambda f: _of_gemm(f, "tokens"),
    ),
    Goal("train_step", "the same of the computed tokens", 0.6, False, lambda f: _of_gemm(f, "computed")),
    Goal("train_step", "AMA-R step against the standard step", 1.02, True, lambda f: _longer(f, "ama-r")),
    Goal("train_step", "AMA-S step against the standard step", 1.02, True, lambda f: _longer(f, "ama-s")),
    Goal("reference_pass", "pairs/s against TRL's precompute, the smallest ratio", 2, False, _worst_pass),
    Goal("merge", "wall against mergekit's command line, the largest ratio", 1.2, True, _worst_merge),
    Goal("merge", "peak memory in largest tensor groups, the largest", 2, True, _largest_merge),
    Goal("data", "rows/s against raw load and tokenise, most rows", 0.7, False, _rate),
    Goal("data", "peak memory, most rows against a tenth of them", 1.1, True, _memory),
    Goal("dag", "first run's wall against its compute", 1.1, True, _waste),
    Goal(
        "dag",
        "unchanged re-run against the first run",
        0.05,
        True,
        _again,
    ),
    Goal("scaling", "largest exponent of a step's cost in rows", 1.05, True, lambda f: _exponent(f, "rows")),
    Goal("scaling", "largest exponent of a step's cost in tasks", 1.05, True, lambda f: _exponent(f, "tasks")),
    Goal("processes", "two processes on two cores against one on one", 1.7, False, _processes),
)


def page() -> str:
    """The page, from the results as they lie there."""
    lines = [
        "# Speed: goals, before, now",
        "",
        "Made by `python -m benchmarks.speed` from `speed/*.json`, which the benchmarks wrote with `--json` on",
        "two cores of an AMD EPYC (Zen 5, AVX512-BF16), 24 GB, no GPU. Ratios of one run each, peers in turn;",
        "what each number is, the docstring of its benchmark says.",
        "",
        "| benchmark | what | goal | before | now | met |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for goal in GOALS:
        now, before = (_value(goal, suffix) for suffix in ("", ".before"))
        limit = f"{'≤' if goal.most else '≥'} {goal.limit:g}"
        met = "" if now is None else "yes" if goal.met(now) else "**no**"
        lines.append(
            f"| `{goal.benchmark}` | {goal.what} | {limit} | {goal.shown(before)} | {goal.shown(now)} | {met} |"
        )
    return "\n".join(lines) + "\n"


def _value(goal: Goal, suffix: str) -> float | None:
    file = RESULTS / f"{goal.benchmark}{suffix}.json"
    return goal.found(files.read_json(file)) if file.exists() else None


if __name__ == "__main__":
    files.write_text(PAGE, page())
    print(page())
