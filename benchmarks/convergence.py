"""Measures how fast AMA-R and AMA-S reach the minimax of a convex problem whose exact value is known.

    python -m benchmarks.convergence [--json FILE] [--plot FILE.png] [--seeds N]

`benchmarks.convex_game` defines the problem and proves its value. The mixers are the package's own. Step t
(from 0) asks the mixer for the tasks of B pairs, draws each pair uniformly from its task, takes a projected
subgradient step of rate lr0 / sqrt(t+1) on (1/B) sum_z w_z e(theta, z), and shows the mixer the excess at the
theta before the step. The results are max_i F_i - P* of the mean of theta_1..theta_T and of theta_T, and the
least-squares slope of its logarithm on log T over all `HORIZONS`. Theory promises T^-1/2 for the mean. It
promises nothing for the last iterate, which keeps moving by the size of its steps. A steeper slope of the
mean shows that it still contains the way from the start.

Constants, the same for every seed: lr0 = R / max ||phi||, which is D/G of the subgradient method; annealed
eta_t = eta / sqrt(t) with eta = sqrt(log k) / M for Hedge (AMA-R) and sqrt(log k / k) / M for EXP3 (AMA-S); M
= log 2 bounds the excess at the start, theta = 0; c is the mixers' default. Theory gives them, no search
does, and they are not critical: on similar problems with eta from 0.3 to 3 and lr0 from 0.3 to 2, slopes of
the mean ranged from -0.4 to -0.8. `uniform-clip` is AMA-R with eta = 0: it converges to another point, so its
curve must level off.
"""

import os
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy import stats

from automixalign.method.mixer import Floats, Mixer
from automixalign.method.mixers import AdaptiveOptions, UniformClip
from benchmarks import harness
from benchmarks.convex_game import Game, Saddle, fixed_game, loss, slope, solve
from benchmarks.mixers import ResamplingAblation, ReweightingAblation

METHODS: dict[str, type[Mixer]] = {
    "ama-r": ReweightingAblation,
    "ama-s": ResamplingAblation,
    "uniform-clip": UniformClip,
}
"""The first two differ from the package's by `anneal`."""
ITERATES = ("average", "last")
HORIZONS = tuple(round(steps) for steps in np.geomspace(100, 10_000, 9))
BATCH = 8
FLOOR = 100
"""Suboptimalities must be at least this many times the certified gap, for logarithms right to 0.01."""


def learning_rate(game: Game) -> float:
    """lr0."""
    return game.radius / float(np.linalg.norm(game.features, axis=1).max())


def mixer_options(method: str, tasks: int) -> dict[str, Any]:
    """The options of a method's mixer."""
    if method == "uniform-clip":
        return {}
    arms = tasks if method == "ama-s" else 1
    return {"eta": float(np.sqrt(np.log(tasks) / arms) / np.log(2)), "anneal": True}


def run(game: Game, value: float, method: str, seed: int, horizons: tuple[int, ...] = HORIZONS) -> Floats:
    """One run from theta = 0: suboptimality of the average and of the last iterate, shape (2, horizons)."""
    sizes, k = game.sizes, len(game.sizes)
    first = np.cumsum(sizes) - sizes
    names = {str(task): size for task, size in enumerate(sizes.tolist())}
    mixer = METHODS[method](names, seed, **mixer_options(method, k))
    random, rate = np.random.default_rng([seed, 1]), learning_rate(game)
    theta = total = np.zeros(game.features.shape[1])
    suboptimality = []
    for step in range(horizons[-1]):
        tasks = mixer.draw(step, BATCH)
        pairs = first[tasks] + random.integers(sizes[tasks])
        features = game.features[pairs]
        margins = features @ theta
        difference = loss(margins) - game.specialist_loss[pairs]
        pull = mixer.example_weights(tasks) * (difference > 0) * slope(margins) / BATCH
        theta = game.project(theta + rate / np.sqrt(step + 1) * (pull @ features))
        excess = np.bincount(tasks, np.maximum(difference, 0), minlength=k)
        mixer.update(excess, np.bincount(tasks, minlength=k))
        total = total + theta
        if step + 1 in horizons:
            suboptimality.append([game.excess(point).max() - value for point in (total / (step + 1), theta)])
    return np.array(suboptimality).T


def run_all(game: Game, value: float, seeds: int) -> dict[str, Floats]:
    """Method -> suboptimalities of every seed, shape (seeds, 2, horizons); uses all processors."""
    results = {method: np.empty((seeds, len(ITERATES), len(HORIZONS))) for method in METHODS}
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        jobs = {
            pool.submit(run, game, value, name, seed): (name, seed) for seed in range(seeds) for name in METHODS
        }
        for job in track(as_completed(jobs), "runs", total=len(jobs), console=Console(stderr=True)):
            method, seed = jobs[job]
            results[method][seed] = job.result()
    return results


def fit(horizons: tuple[int, ...], suboptimality: Floats) -> Floats:
    """The least-squares slope of log suboptimality, shape (..., horizons), on log T: shape (...)."""
    place = np.log(horizons) - np.mean(np.log(horizons))
    return np.log(suboptimality) @ place / (place @ place)


def interval(values: Floats) -> dict[str, float]:
    """The mean of independent values, shape (n,) with n > 1, and its 95 % t-interval."""
    mean = float(np.mean(values))
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def curves(results: Mapping[str, Floats], gap: float) -> list[dict[str, Any]]:
    """The suboptimalities, their means and the slopes of each method and kind of iterate.

    Raises:
        RuntimeError: a suboptimality is too close to the certified gap for a logarithm.
    """
    lowest = min(float(values.min()) for values in results.values())
    if lowest < FLOOR * gap:
        raise RuntimeError(f"a suboptimality of {lowest:.1e} is not resolved by a certified gap of {gap:.1e}")
    entries = []
    for method, values in results.items():
        for number, iterate in enumerate(ITERATES):
            each = values[:, number]
            slopes = fit(HORIZONS, each)
            entries.append(
                {
                    "method": method,
                    "iterate": iterate,
                    "mean": each.mean(axis=0).tolist(),
                    "each": each.tolist(),
                    "slope": {**interval(slopes), "each": slopes.tolist()},
                }
            )
    return entries


def report(game: Game, saddle: Saddle, entries: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Everything that the JSON file holds."""
    return {
        "problem": {
            "k": len(game.sizes),
            "d": game.features.shape[1],
            "n": game.sizes.tolist(),
            "radius": game.radius,
            "value": saddle.value,
            "gap": saddle.gap,
            "alpha": saddle.alpha.tolist(),
            "theta": saddle.theta.tolist(),
            "start": float(game.excess(np.zeros_like(saddle.theta)).max()) - saddle.value,
        },
        "constants": {
            "batch": BATCH,
            "lr0": learning_rate(game),
            "c": AdaptiveOptions().c,
            "mixers": {method: mixer_options(method, len(game.sizes)) for method in METHODS},
        },
        "seeds": len(entries[0]["each"]),
        "horizons": HORIZONS,
        "curves": entries,
        "seconds": seconds,
    }


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print the problem, the mean suboptimality at each T, and the slopes."""
    problem, constants, entries = result["problem"], result["constants"], result["curves"]
    etas = ", ".join(f"{name} eta {some['eta']:.3f}" for name, some in constants["mixers"].items() if some)
    console.print(
        f"k {problem['k']}, d {problem['d']}, n_i {problem['n']}, R {problem['radius']:g}; "
        f"P* = {problem['value']:.10f}, certified gap {problem['gap']:.1e}; "
        f"theta = 0 is {problem['start']:.4f} above\n"
        f"alpha* {[round(some, 3) for some in problem['alpha']]}, c/k {constants['c'] / problem['k']:.3f}; "
        f"batch {constants['batch']}, lr0 {constants['lr0']:.3f}, {etas} (annealed)",
        highlight=False,
    )
    table = Table(title=f"max_i F_i - P*, mean of {result['seeds']} seeds ({result['seconds']:.0f} s)")
    for name in ("T", *(f"{entry['method']}\n{entry['iterate']}" for entry in entries)):
        table.add_column(name, justify="right")
    for number, steps in enumerate(result["horizons"]):
        table.add_row(str(steps), *(f"{entry['mean'][number]:.5f}" for entry in entries))
    table.add_section()
    slopes = [entry["slope"] for entry in entries]
    table.add_row("slope", *(f"{some['mean']:.3f}" for some in slopes))
    table.add_row("95 %", *(f"{some['low']:.3f} .. {some['high']:.3f}" for some in slopes))
    console.print(table)


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Plot in log-log the mean over seeds, a band from the 10th to the 90th percentile, and T^-1/2."""
    from matplotlib.figure import Figure

    horizons = np.array(result["horizons"])
    figure = Figure(figsize=(11, 4.2))
    axes = figure.subplots(1, len(ITERATES), sharey=True)
    for axis, iterate in zip(axes, ITERATES, strict=True):
        shown = [entry for entry in result["curves"] if entry["iterate"] == iterate]
        for entry in shown:
            low, high = np.percentile(entry["each"], [10, 90], axis=0)
            axis.fill_between(horizons, low, high, alpha=0.2)
            axis.plot(horizons, entry["mean"], label=f"{entry['method']} ({entry['slope']['mean']:.2f})")
        axis.plot(horizons, shown[0]["mean"][0] * np.sqrt(horizons[0] / horizons), "k--", label="slope -1/2")
        axis.set(xscale="log", yscale="log", xlabel="steps T", title=f"{iterate} iterate")
        axis.legend(fontsize=8)
    axes[0].set_ylabel("max_i F_i - P*")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def main() -> None:
    """Solve, run and print; write JSON and the plot if the command line names files."""
    parser = harness.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("an interval takes two seeds or more")
    began = time.perf_counter()
    game = fixed_game()
    saddle = solve(game)
    entries = curves(run_all(game, saddle.value, options.seeds), saddle.gap)
    result = report(game, saddle, entries, time.perf_counter() - began)
    show(result, Console(width=140))
    harness.write(options, result)
    if options.plot:
        plot(result, options.plot)


if __name__ == "__main__":
    main()
