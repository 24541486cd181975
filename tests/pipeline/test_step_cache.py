"""The cache of steps: which folder it believes, and what it does with what it finds."""

import os
from pathlib import Path

import pytest
from kfp import dsl

from automixalign.steps import artifacts
from automixalign.steps.events import EVENTS_FILE, LOGS_VARIABLE
from automixalign.steps.step import run_step
from automixalign.storage import files
from automixalign.system.errors import CacheError, ConfigError
from pipelines.local.caching import StepCache
from pipelines.local.shared_cache import folder as shared_folder


def made(folder: Path, text: str = "weights") -> dsl.Model:
    """A sealed artifact in a folder of its own."""
    folder.mkdir(parents=True)
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_text(text)
    model = dsl.Model(name="model", uri=str(folder / "model"), metadata={"model": "ama-r"})
    artifacts.seal([model])
    return model


def key(cache: StepCache, model: dsl.Model, name: str = "comp-evaluate") -> str:
    return cache.compute_key(component_name=name, image="i", full_command=["c"], arguments={"model": model})


@pytest.fixture
def cache(tmp_path: Path) -> StepCache:
    return StepCache(tmp_path / "own", tmp_path / "attempt", tmp_path / "shared")


def test_a_folder_that_others_can_write_to_is_not_believed(tmp_path: Path) -> None:
    assert shared_folder(tmp_path / "mine").stat().st_mode & 0o777 == 0o700
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(ConfigError, match="open is not yours alone"):
        shared_folder(tmp_path / "open")


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to give a folder away")
def test_nor_is_somebody_elses(tmp_path: Path) -> None:
    os.chown(shared_folder(tmp_path / "theirs"), 12345, -1)
    with pytest.raises(ConfigError, match="theirs is not yours alone"):
        shared_folder(tmp_path / "theirs")


def test_an_artifact_is_known_by_its_content_not_by_its_place(cache: StepCache, tmp_path: Path) -> None:
    one, same, other = made(tmp_path / "a"), made(tmp_path / "b"), made(tmp_path / "c", "other weights")
    assert key(cache, one) == key(cache, same) != key(cache, other)
    assert key(cache, one) == key(cache, one, "comp-evaluate-4"), "kfp numbers a component's uses"
    assert key(cache, one) != key(cache, one, "comp-compare")


def test_a_result_is_linked_into_the_run_that_takes_it(cache: StepCache, tmp_path: Path) -> None:
    original = made(tmp_path / "other run")
    cache.shared[0].put("k", {"model": original})
    taken = cache.get("k")
    assert taken is not None
    place = Path(taken["model"].path)
    assert place.is_relative_to(tmp_path / "attempt")
    assert (place / "weights").samefile(Path(original.path) / "weights")
    again = StepCache(tmp_path / "own", tmp_path / "attempt", None).get("k")
    assert again is not None, "from now on the run folder's own"


@pytest.mark.parametrize("change", ["altered", "removed", "added"])
def test_a_result_that_has_changed_is_not_taken(
    change: str, cache: StepCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LOGS_VARIABLE, str(tmp_path))
    original = made(tmp_path / "run")
    cache.put("k", {"model": original})
    file = Path(original.path) / "weights"
    if change == "altered":
        file.write_text("WEIGHTS")
    elif change == "removed":
        file.unlink()
    else:
        (file.parent / "more").touch()
    assert cache.get("k") is None
    (*_, warning) = files.read_jsonl(tmp_path / EVENTS_FILE)
    assert f"{original.path} has changed since its stage wrote it" in warning["message"]
    with (
        pytest.raises(CacheError, match="has changed since its stage wrote it; start the run again"),
        run_step("evaluate", "x", reads=[original]),
    ):
        pytest.fail("a step does not begin with it")


def test_an_artifact_of_metadata_alone_is_no_lost_one(cache: StepCache, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    metrics = dsl.Metrics(name="metrics", uri=str(tmp_path / "run" / "metrics"), metadata={"accuracy": 0.5})
    cache.put("k", {"metrics": metrics})
    taken = cache.get("k")
    assert taken is not None
    assert taken["metrics"].metadata == {"accuracy": 0.5}
