"""What the quality benchmark found: `benchmarks/results/quality.md` and its plots.

    python -m benchmarks.quality.page

reads `benchmarks/results/quality/SETUP.json` and `map.json`, which the benchmark wrote, and writes the page
and the plots beside them. Every sentence with a number in it is made from the numbers.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from automixalign.storage import files
from benchmarks.quality import plots, settled, shown, tables
from benchmarks.quality.capacity import CapacityMap, lines
from benchmarks.quality.comparisons import (
    AMA,
    BASELINE,
    TOTAL,
    Comparison,
    with_as_long,
    with_rivals,
    with_uniform,
)
from benchmarks.quality.measured import WORST_EXCESS, Setup
from benchmarks.quality.statistics import EXACT_SEEDS, RESAMPLES, smallest_p

RESULTS = Path(__file__).parents[1] / "results" / "quality"
PAGE = RESULTS.with_suffix(".md")
_MAP = "map"
_TOTAL = BASELINE + TOTAL


def read_setups(results: Path = RESULTS) -> list[Setup]:
    """The setups whose results lie there, by name."""
    return [Setup.read(file) for file in sorted(results.glob("*.json")) if file.stem != _MAP]


def read_map(results: Path = RESULTS) -> CapacityMap | None:
    """The map, if it lies there."""
    file = results / f"{_MAP}.json"
    return CapacityMap.read(file) if file.exists() else None


def page(results: Path = RESULTS) -> str:
    """The page, from the results as they lie there."""
    setups, found = read_setups(results), read_map(results)
    text = [
        "# Quality: what the mixing methods and merges give",
        "",
        f"Made by `python -m benchmarks.quality.page` from `{results.name}/*.json`, which the benchmark wrote.",
        "",
        *summary(setups),
        *_how_to_read(),
    ]
    if setups:
        text += ["## Worst excess on every setup", "", tables.readme_table(setups)]
    for setup in setups:
        text += _section(setup, results.name)
    if found:
        text += lines(found, f"{results.name}/{_MAP}.png")
    text += settled.section(results.with_name(f"{results.name}-defaults"))
    return "\n".join(text).rstrip() + "\n"


def write(results: Path = RESULTS) -> Path:
    """Write the page beside the folder of results, and the plots into it; gives the page."""
    for setup in read_setups(results):
        compared = [(setup.family(found.arm), found) for found in with_uniform(setup, WORST_EXCESS)]
        if compared:
            title = f"{setup.name}, {shown.seeds(len(setup.measured_seeds))}"
            plots.forest(compared, title, results / f"{setup.name}.png")
    found = read_map(results)
    if found and found.metrics():
        plots.heat_maps(found, results / f"{_MAP}.png")
    place = results.with_suffix(".md")
    files.write_text(place, page(results))
    return place


def summary(setups: Sequence[Setup]) -> list[str]:
    """A sentence a setup: AMA against uniform mixing, and against uniform mixing with as much compute."""
    found = [sentence for setup in setups if (sentence := _sentence(setup))]
    return [*(f"- {sentence}" for sentence in found), ""] if found else []


def _sentence(setup: Setup) -> str | None:
    uniform = with_uniform(setup, WORST_EXCESS)
    total = [found for found in with_rivals(setup, WORST_EXCESS) if found.baseline == _TOTAL]
    clauses = []
    for arm in AMA:
        found = [_difference(each) for each in (*uniform, *total) if each.arm == arm]
        if found:
            clauses.append(f"`{arm}`'s worst-task excess lies {', and '.join(found)}")
    as_long = [found for found in with_as_long(setup, WORST_EXCESS) if found.baseline == _TOTAL]
    clauses += [f"`{found.arm}`'s, {_difference(found)}" for found in as_long]
    seeds = shown.seeds(len(setup.measured_seeds))
    return f"`{setup.name}` ({seeds}): {'; '.join(clauses)}." if clauses else None


def _difference(found: Comparison) -> str:
    mean, low, high = found.paired.difference
    above = mean > 0
    text = f"{shown.number(abs(mean))} {'above' if above else 'below'} `{found.baseline}`'s"
    if low is not None and high is not None:
        ends = (low, high) if above else (-high, -low)
        zero = "" if found.paired.difference.resolved else " with 0 in it"
        text += f" [{', '.join(shown.number(end) for end in ends)}]{zero}"
    wins, p = shown.wins(found.paired, " seeds"), shown.p_value(found.corrected)
    return f"{text}, better in {wins}, p = {p} corrected"


def _how_to_read() -> list[str]:
    examples = ", ".join(f"{shown.p_value(smallest_p(seeds))} for {seeds}" for seeds in (5, 8, 10))
    return [
        "How to read it:",
        "",
        "- *Excess* is the mean over a task's test pairs of max(loss - specialist's loss, 0); *worst* is the",
        "  worst task of each seed, averaged over seeds. Differences are arm minus baseline, paired by seed.",
        "  **A negative difference of excess is good**, and a positive one of accuracy, generation or margin.",
        f"- In brackets: 95 % percentile bootstrap over the seeds ({RESAMPLES:,} resamples). It never goes",
        "  beyond the smallest and largest seed, is too narrow for few, and excludes 0 whenever all agree.",
        f"- p: two-sided sign-flip test, exact up to {EXACT_SEEDS} seeds, with Holm's correction. Before it,",
        f"  no p of n seeds can be below 2/2^n: {examples}.",
        "- *Accuracy* is the share of pairs whose chosen answer has the larger reward, *margin* by how much,",
        "  *generation* the share of greedy answers that a verifier passes, *drift* the mean KL divergence",
        "  from the reference per token of the chosen answers. Tokens and seconds are of the arm's own",
        "  training: an AMA arm and a merge need the specialists, too; arms named `-total` train for as many",
        "  steps as all of that (`ama-r-total` needs the specialists on top).",
        "  Seconds are as the clock had them, on more than one machine and beside other work: compare tokens.",
        "",
    ]


def _section(setup: Setup, folder: str) -> list[str]:
    plot = f"![Worst excess minus uniform's]({folder}/{setup.name}.png)"
    uniform = tables.against_uniform(setup)
    return [
        f"## `{setup.name}`",
        "",
        setup.pilot,
        "",
        f"`{setup.command}` ([results]({folder}/{setup.name}.json))",
        "",
        *tables.specialists(setup),
        *tables.arms(setup),
        *([plot, "", *uniform] if uniform else []),
        *tables.against_rivals(setup),
        *tables.against_as_long(setup),
        *tables.against_plain(setup),
        *tables.tuned(setup),
        *tables.task_by_task(setup),
        *tables.late(setup),
    ]


def main() -> None:
    """Write the page, and print its summary."""
    if not RESULTS.is_dir():
        raise SystemExit(f"{RESULTS} has no results: python -m benchmarks.quality makes them")
    place, setups = write(), read_setups()
    console = Console()
    if setups:
        console.print(Markdown("\n".join([*summary(setups), tables.readme_table(setups)])))
    console.print(f"{place}, and its plots in {RESULTS}", highlight=False)


if __name__ == "__main__":
    main()
