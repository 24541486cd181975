"""The committed results are of the setups as they are now, and the page and the documents show them."""

from pathlib import Path

from automixalign.storage import files
from benchmarks.quality import arms, page, sweep, tables
from benchmarks.quality.setups import PREFERENCES, SETUPS

ROOT = Path(__file__).parents[2]


def test_the_page_is_made_from_the_committed_results() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.page()


def test_the_documents_have_the_overview() -> None:
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    overview = tables.overview(page.read_setups())
    assert any(overview in document.read_text(encoding="utf-8") for document in documents)


def test_other_setups_take_over_what_smollm2_two_chose() -> None:
    tuned = files.read_json(page.RESULTS / "smollm2-two.json")["tuned"]
    taken_over = (*arms.ON_SMOLLM2, arms.AMA_R_TOTAL_ON_SMOLLM2)
    assert {arm.name: arm.options for arm in taken_over} == {
        arm.name: tuned[arm.name]["chosen"] for arm in (*arms.FEW_TRIES, *arms.TUNED_TOTAL)
    }


def test_every_committed_setup_is_one_of_the_code() -> None:
    for results in page.read_setups():
        setup = SETUPS[results.name]
        arms_of_setup = (*setup.generalists, *setup.merges)
        assert {arm.name for arm in arms_of_setup} == set(results.arms("generalist", "merge"))
        committed = files.read_json(page.RESULTS / f"{results.name}.json")["arms"]
        assert sweep.changed_arms(arms_of_setup, committed) == set()
        assert not set(results.seeds) & set(results.tuning_seeds)


def test_the_committed_experiments_are_those_of_the_code(tmp_path: Path) -> None:
    """Except `reasoning-gym`, which needs the extra `quality`. Preference pairs count by their file names."""
    for task in PREFERENCES:
        files.write_jsonl(tmp_path / f"{task}.jsonl", [])
    for results in page.read_setups():
        if results.name != "reasoning-gym":
            now = sweep.experiment_without_paths(SETUPS[results.name], tmp_path, tmp_path)
            assert files.read_json(page.RESULTS / f"{results.name}.json")["experiment"] == now
