"""The specialist's losses: against the definition, the recorded gap, and two-fold cross-fitting."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from automixalign.config.data import DataSettings
from automixalign.config.evaluation import ScoringSettings
from automixalign.config.training import SpecialistLossesSettings, SpecialistSettings
from automixalign.data.store import read_split
from automixalign.models.load import load_full_model, load_model
from automixalign.scoring import caches
from automixalign.scoring.reference_logps import write_reference_logps
from automixalign.scoring.scorer import Scorer
from automixalign.storage import files
from automixalign.system.errors import DataError
from automixalign.training.cross_fitting import halves
from automixalign.training.launch import train as train_it
from automixalign.training.memorisation import measure_memorisation, memorisation_warning
from automixalign.training.specialist import SpecialistTraining
from automixalign.training.specialist_losses import write_specialist_losses
from benchmarks import tiny

TASK = "format"
TRAINING = SpecialistSettings.model_validate(
    {"seed": 0, "training": {"batch_size": 6, "learning_rate": 3e-2}, "budget": {"steps": 60}}
)


def settings(**changes: Any) -> SpecialistLossesSettings:
    defaults = {"seed": 0, "batch_size": 5, "precision": "fp32", "loss": {}, "warn_gap": 0.05, "fold": None}
    return SpecialistLossesSettings.model_validate(defaults | changes)


def write(
    base_model: Path, data: Path, reference_logps: Path, specialist: Path, output: Path, **changes: Any
) -> dict[str, Any]:
    evaluation, scores = output.parent / "evaluation", output.parent / "scores"
    paths = {"data": data, "reference_logps": reference_logps, "base_model": base_model}
    trajectory = output.parent / "none"
    scored = TRAINING.model_copy(update={"score_precision": None if changes.get("fold") else "fp32"})
    SpecialistTraining(
        settings=scored, task=TASK, **paths, output=specialist, trajectory=trajectory, scores=scores
    ).finish()
    scorer = Scorer(load_full_model(specialist), 5, "fp32")
    for split, folder in (("test", evaluation), ("validation", evaluation / "validation")):
        files.write_table(folder / f"{TASK}.parquet", scorer.scores(read_split(data, TASK, split)))
    return write_specialist_losses(
        settings(**changes),
        task=TASK,
        **paths,
        scores=scores,
        evaluation=evaluation,
        output=output,
    )


@pytest.fixture(scope="module")
def noisy(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task whose training labels are a coin's, so that they can only be learned by heart."""
    folder = tmp_path_factory.mktemp("noisy")
    source = {"name": TASK, "source": f"synthetic:{TASK}", "limit": 60, "label_noise": 0.5}
    given = {"seed": 0, "tasks": [source], "split": {"test": 0.3}, "max_length": 64, "fingerprints": [""]}
    tiny.prepare(DataSettings.model_validate(given), base_model, folder / "data")
    scoring = ScoringSettings(seed=0, batch_size=16, precision="fp32")
    write_reference_logps(scoring, folder / "data", base_model, folder / "reference_logps")
    return folder


def _specialist(
    settings: SpecialistSettings, base_model: Path, noisy: Path, output: Path, **more: Any
) -> SpecialistTraining:
    return SpecialistTraining(
        settings=settings,
        task=TASK,
        data=noisy / "data",
        reference_logps=noisy / "reference_logps",
        base_model=base_model,
        output=output,
        trajectory=output.with_suffix(".jsonl"),
        **more,
    )


@pytest.fixture(scope="module")
def memoriser(base_model: Path, noisy: Path) -> Path:
    """A specialist that passed over its training pairs many times."""
    train_it(_specialist(TRAINING, base_model, noisy, noisy / "model"))
    return noisy / "model"


def test_a_training_scores_its_pairs_under_the_model_that_it_saved(
    base_model: Path, noisy: Path, tmp_path: Path
) -> None:
    """In its own batches of six pairs; cross-fitting makes other scores, so nothing but the digest remains."""
    spec = {"batch_size": 12, "micro_batch_size": 6, "learning_rate": 1e-2, "lora": {"rank": 2}}
    given = {"seed": 0, "training": spec, "budget": {"steps": 1}, "score_precision": "fp32"}
    settings = SpecialistSettings.model_validate(given)
    scores, model = tmp_path / "scores", tmp_path / "model"
    train_it(_specialist(settings, base_model, noisy, model, scores=scores))
    scorer = Scorer(load_model(model, base_model), 12, "fp32")
    assert caches.read_cache(scores, "train") == scorer.scores(read_split(noisy / "data", TASK, "train"))
    manifest = files.read_json(scores / caches.MANIFEST)
    assert (manifest["model"], manifest["precision"]) == (files.digest(model), "fp32")
    caches.check_cache(scores, noisy / "data", TASK)

    other = settings.model_copy(update={"score_precision": None})
    _specialist(other, base_model, noisy, model, scores=scores).finish()
    assert [file.name for file in scores.iterdir()] == [caches.MANIFEST]


def test_a_specialist_that_is_the_reference_has_a_loss_of_ln_2(
    base_model: Path, two_tasks: Path, two_reference_logps: Path, tmp_path: Path
) -> None:
    output = tmp_path / "losses"
    manifest = write(base_model, two_tasks, two_reference_logps, base_model, output)
    assert manifest["pairs"] == {"train": 18, "validation": 3, "test": 9}
    assert manifest["gap"] == pytest.approx(0, abs=1e-5)
    for split, mean in manifest["mean_loss"].items():
        losses = caches.column(caches.read_cache(output, split), caches.LOSS)
        assert losses == pytest.approx(np.full(len(losses), math.log(2)), abs=1e-5)
        assert mean == pytest.approx(math.log(2), abs=1e-5)
    caches.check_cache(output, two_tasks, TASK)


def test_ipo_losses_are_cached(base_model: Path, noisy: Path, memoriser: Path, tmp_path: Path) -> None:
    """IPO needs the lengths of the answers; numpy computes its formula."""
    output = tmp_path / "losses"
    loss = {"loss_type": "ipo", "beta": 0.2}
    write(base_model, noisy / "data", noisy / "reference_logps", memoriser, output, loss=loss)
    for split in ("train", "validation", "test"):
        pairs = read_split(noisy / "data", TASK, split)
        cache = caches.read_cache(output, split)
        reference_logps = caches.read_cache(noisy / "reference_logps" / TASK, split)
        per_token = [
            (caches.column(cache, logps) - caches.column(reference_logps, logps))
            / [len(ids) for ids in pairs.column(side).to_pylist()]
            for logps, side in (("chosen_logps", "chosen_ids"), ("rejected_logps", "rejected_ids"))
        ]
        assert caches.column(cache, caches.LOSS) == pytest.approx((per_token[0] - per_token[1] - 1 / 0.4) ** 2)


def test_a_memorising_specialist_is_warned_about(
    base_model: Path, noisy: Path, memoriser: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = base_model, noisy / "data", noisy / "reference_logps", memoriser
    manifest = write(*sources, tmp_path / "losses")
    losses = {
        split: caches.column(caches.read_cache(tmp_path / "losses", split), caches.LOSS)
        for split in ("train", "validation", "test")
    }
    held_out = np.concatenate([losses["validation"], losses["test"]])
    assert manifest["gap"] == pytest.approx(held_out.mean() - losses["train"].mean())
    assert manifest["gap"] > 0.05
    assert "warning: specialist-format: its held-out loss is" in capsys.readouterr().err
    assert manifest["gap_interval"][0] > 0
    write(*sources, tmp_path / "quiet", warn_gap=10.0)
    assert "warning" not in capsys.readouterr().err


OLD = {"gap": 0.3, "cross_fit": False}


@pytest.mark.parametrize(
    ("measured", "warns"),
    [
        (OLD, True),
        ({**OLD, "gap": 0.1}, False),
        ({**OLD, "gap_interval": (0.1, 0.5), "passes": 2.0}, True),
        ({**OLD, "gap_interval": (0.1, 0.5), "passes": None}, True),
        ({**OLD, "gap_interval": (0.1, 0.5), "passes": 1.9}, False),
        ({**OLD, "gap_interval": (-0.1, 0.7), "passes": 2.0}, False),
        ({**OLD, "gap_interval": None, "passes": 2.0}, False),
        ({**OLD, "gap_interval": (0.1, 0.5), "passes": 0.5, "cross_fit": True}, True),
    ],
    ids=[
        "earlier version",
        "small",
        "large",
        "unknown passes",
        "seen once",
        "by chance",
        "one prompt",
        "splits",
    ],
)
def test_memorised_needs_two_passes_and_an_interval_above_0(measured: dict[str, Any], warns: bool) -> None:
    assert (memorisation_warning("a", measured, 0.1) is not None) == warns


def test_passes_are_those_of_the_budget(noisy: Path) -> None:
    pairs = {split: read_split(noisy / "data", TASK, split) for split in ("train", "validation", "test")}
    losses = {split: np.ones(len(table)) for split, table in pairs.items()}
    budget = {"budget": {"steps": 10}, "pairs_per_step": 6}
    measured = measure_memorisation(settings(**budget), losses, pairs)
    assert measured["passes"] == 60 / len(pairs["train"])
    assert (measured["gap"], measured["gap_interval"]) == (0, (0, 0))


def test_cross_fitting_scores_each_pair_by_a_specialist_that_never_saw_it(
    base_model: Path, noisy: Path, memoriser: Path, tmp_path: Path
) -> None:
    sources = base_model, noisy / "data", noisy / "reference_logps", memoriser
    fold = TRAINING.for_a_half()
    assert fold.budget.steps == 30
    plain = write(*sources, tmp_path / "plain")
    fitted = write(*sources, tmp_path / "fitted", fold=fold.model_dump())
    assert (plain["cross_fit"], fitted["cross_fit"]) == (False, True)
    assert fitted["gap"] < plain["gap"] / 3, "the losses of unseen pairs are like those of held-out ones"
    for split in ("validation", "test"):
        assert caches.read_cache(tmp_path / "plain", split) == caches.read_cache(tmp_path / "fitted", split)
    # Each half against a specialist of the other half, which the test trains.
    train = read_split(noisy / "data", TASK, "train")
    ids = train.column("pair_id").to_pylist()
    cached = caches.read_cache(tmp_path / "fitted", "train")
    assert cached.column("pair_id").to_pylist() == ids
    first, second = halves(train, 0)
    for half, rest in ((first, second), (second, first)):
        model = tmp_path / f"half-{len(list(tmp_path.iterdir()))}"
        train_it(_specialist(fold, base_model, noisy, model, pair_ids=half))
        rows = train.filter(pa.array([pair_id in rest for pair_id in ids]))
        chosen, _ = Scorer(load_model(model, base_model), 5, "fp32").logps(rows)
        mine = cached.filter(pa.array([pair_id in rest for pair_id in ids]))
        assert caches.column(mine, caches.CHOSEN) == pytest.approx(chosen, abs=1e-6)


def test_folds_are_halves_that_share_no_prompt() -> None:
    prompts = [[row // 3] for row in range(40)]
    pairs = pa.table({"pair_id": [str(row) for row in range(40)], "prompt_ids": prompts})
    first, second = halves(pairs, 0)
    assert first | second == set(pairs.column("pair_id").to_pylist())
    assert not first & second
    assert abs(len(first) - len(second)) <= 3
    assert not {int(row) // 3 for row in first} & {int(row) // 3 for row in second}
    assert (first, second) == halves(pairs, 0)
    assert first not in halves(pairs, 1)
    with pytest.raises(DataError, match="one prompt only"):
        halves(pairs.slice(0, 3), 0)
