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


def test_what_smollm2_two_chose_is_what_others_take_over() -> None:
    tuned = files.read_json(page.RESULTS / "smollm2-two.json")["tuned"]
    taken_over = (*arms.ON_SMOLLM2, arms.AMA_R_TOTAL_ON_SMOLLM2)
    assert {arm.name: arm.options for arm in taken_over} == {
        arm.name: tuned[arm.name]["chosen"] for arm in (*arms.FEW_TRIES, *arms.TUNED_TOTAL)
    }


def test_the_results_are_of_setups_there_are() -> None:
    for found in page.read_setups():
        setup = SETUPS[found.name]
        names = {arm.name for arm in (*setup.generalists, *setup.merges)}
        assert names == set(found.arms("generalist", "merge"))
        assert not set(found.seeds) & set(found.tuning_seeds)


def test_the_results_are_of_the_setups_as_they_are(tmp_path: Path) -> None:
    """But for `reasoning-gym`, which needs the extra `quality`; of preference pairs the names of files do."""
    for task in PREFERENCES:
        files.write_jsonl(tmp_path / f"{task}.jsonl", [])
    for found in page.read_setups():
        if found.name != "reasoning-gym":
            now = sweep._without_places(SETUPS[found.name], tmp_path, tmp_path)
            assert files.read_json(page.RESULTS / f"{found.name}.json")["experiment"] == now
