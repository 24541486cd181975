"""Writes the results page `benchmarks/results/quality.md` and its plots.

    python -m benchmarks.quality.page

reads `SETUP.json`, `SETUP.pilot.md` and `map.json` in `benchmarks/results/quality/`, and `SETUP.json` in
`quality-defaults/` beside it.
"""

from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from automixalign.storage import files
from benchmarks.quality import plots, tables
from benchmarks.quality.results import (
    FULL,
    WORST_EXCESS,
    WORST_GAP,
    CapacityMap,
    SetupResults,
    compared,
    with_uniform,
)
from benchmarks.quality.statistics import BOOTSTRAP_RESAMPLES, EXACT_SEEDS, smallest_p

RESULTS = Path(__file__).parents[1] / "results" / "quality"
PAGE = RESULTS.with_suffix(".md")
_MAP = "map"

_HOW_TO_READ = f"""How to read the tables:

- The *gap* of a task is the mean over its test pairs of (loss - specialist's loss). Below 0, the arm is better
  than the specialist. The *worst* gap is that of the worst task of each seed, averaged over seeds. It ranks the
  arms. It is computed from the losses in the results, which have five digits after the point.
- The *excess* is the mean of max(loss - specialist's loss, 0), AMA's objective. It favours arms that train on
  it.
- *Accuracy* is the share of pairs whose chosen answer has the larger reward, and *margin* the mean difference
  of the rewards. *Pass rate* is the share of greedy answers that a verifier passes. *Drift* is the mean KL
  divergence from the reference model per token of the chosen answers.
- A difference is arm minus baseline, paired by seed. **A negative difference of gap or excess is good.** A
  positive difference of accuracy, pass rate or margin is good.
- Brackets hold the 95 % percentile bootstrap interval over seeds ({BOOTSTRAP_RESAMPLES:,} resamples). It never
  exceeds the smallest and largest seed, is too narrow for few seeds, and excludes 0 whenever all seeds agree.
  *Resolved* means that the interval excludes 0.
- p is the two-sided p of the sign-flip test, exact up to {EXACT_SEEDS} seeds, with Holm's correction over
  the rows of its table. Before the correction, n seeds give no p below 2/2^n: \
{", ".join(f"{tables.p_value(smallest_p(n))} for {n}" for n in (5, 8, 10))}.
- Tokens and seconds are those of the arm's own training. AMA and merges need the specialists as well. An
  arm named `-total` trains for its own steps and those of all specialists; `ama-r-total` needs the
  specialists on top. Seconds come from several, partly busy machines: compare tokens.
"""

_MAP_TEXT = f"""## Where AMA-R differs from uniform mixing

`{{command}}`; {{seeds}}. Capacity is the rank of the adapters; `{FULL}` trains all weights. AMA-R is better
where the plot is blue; a cell has its mean difference and the number of seeds on which AMA-R is better. A
cell has few seeds, so the map only shows where to look. There is no p; `map.json` has the numbers. It holds no
losses, so there is no map of the gap.

![AMA-R minus uniform by capacity, steps and tasks]({{plot}})
"""

_DEFAULTS_TEXT = """
## What the defaults are based on

Means over the tuning seeds on the test split, at twice the setup's learning rate. No other table reports these
seeds. The NLL weight applies to the specialists, too, so each weight counts its excess from other specialists.
These results hold no losses, so they have no gap.
"""


def read_setups(results: Path = RESULTS) -> list[SetupResults]:
    """The results of every setup, by name."""
    return [SetupResults.read(file) for file in sorted(results.glob("*.json")) if file.stem != _MAP]


def read_map(results: Path = RESULTS) -> CapacityMap | None:
    """The capacity map, if it was measured."""
    file = results / f"{_MAP}.json"
    return CapacityMap.read(file) if file.exists() else None


def page(results: Path = RESULTS) -> str:
    """The text of the page."""
    setups, cells, folder = read_setups(results), read_map(results), results.name
    text = [
        "# Quality: AutoMixAlign against other ways to mix and merge",
        "",
        f"`python -m benchmarks.quality.page` makes this page from `{folder}/*.json`.",
        "",
        *_HOW_TO_READ.splitlines(),
        "",
    ]
    if setups:
        text += ["## Worst gap and worst excess on every setup", "", tables.overview(setups), ""]
        text += [tables.overview(setups, WORST_EXCESS), "", *tables.summary(setups)]
    for setup in setups:
        text += _section(setup, results)
    if cells:
        plot, seeds = f"{folder}/{_MAP}.png", tables.seeds(len(cells.seeds))
        text += _MAP_TEXT.format(command=cells.command, seeds=seeds, plot=plot).splitlines()
    text += _defaults(results.with_name(f"{folder}-defaults"))
    return "\n".join(text).rstrip() + "\n"


def _section(setup: SetupResults, results: Path) -> list[str]:
    folder, pilot = results.name, results / f"{setup.name}.pilot.md"
    plot = [f"![Worst gap minus uniform's]({folder}/{setup.name}.png)", ""]
    return [
        f"## `{setup.name}`",
        "",
        *([pilot.read_text(encoding="utf-8")] if pilot.exists() else []),
        f"`{setup.command}` ([results]({folder}/{setup.name}.json))",
        "",
        *tables.specialists(setup),
        *tables.arms(setup),
        *(plot if compared(setup, with_uniform(setup), WORST_GAP) else []),
        *tables.comparisons(setup),
        *tables.tuned(setup),
        *tables.task_by_task(setup),
        *tables.late(setup),
    ]


def _defaults(folder: Path) -> list[str]:
    grids = [files.read_json(file) for file in sorted(folder.glob("*.json"))]
    lines = _DEFAULTS_TEXT.splitlines() if grids else []
    for grid in grids:
        rows = grid["rows"]
        lines += ["", f"### {grid['setup']}, {rows[0]['seeds']} seeds", "", f"`{grid['command']}`", ""]
        lines += [*tables.defaults(rows, ["eta", "c"]), *tables.defaults(rows, ["nll_weight"])]
    return lines


def write(results: Path = RESULTS) -> Path:
    """Write the page beside the folder of results and the plots into it; returns the page's path."""
    for setup in read_setups(results):
        comparisons = compared(setup, with_uniform(setup), WORST_GAP)
        if comparisons:
            title = f"{setup.name}, {tables.seeds(len(setup.measured_seeds))}"
            families = [setup.family(each.arm) for each in comparisons]
            plots.forest(comparisons, families, title, results / f"{setup.name}.png")
    cells = read_map(results)
    if cells and cells.worst_metrics():
        plots.heat_maps(cells, results / f"{_MAP}.png")
    path = results.with_suffix(".md")
    files.write_text(path, page(results))
    return path


def main() -> None:
    """Write the page, and print its overview."""
    if not RESULTS.is_dir():
        raise SystemExit(f"{RESULTS} has no results: python -m benchmarks.quality makes them")
    path, setups = write(), read_setups()
    console = Console()
    if setups:
        console.print(Markdown("\n".join([tables.overview(setups), "", *tables.summary(setups)])))
    console.print(f"wrote {path} and the plots in {RESULTS}", highlight=False)


if __name__ == "__main__":
    main()
