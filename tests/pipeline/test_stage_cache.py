"""The cache of stages: which folders it trusts, what identifies a result, and which results it refuses."""

import os
from pathlib import Path

import pytest
from kfp import dsl

from automixalign.steps import artifacts
from automixalign.steps.events import EVENTS_FILE, LOGS_VARIABLE
from automixalign.steps.step import run_step
from automixalign.storage import files
from automixalign.system.errors import CacheError, ConfigError
from pipelines.local.stage_cache import StageCache, shared_cache_folder


def sealed_model(folder: Path, text: str = "weights") -> dsl.Model:
    """A sealed artifact in a folder of its own."""
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "weights").write_text(text)
    model = dsl.Model(name="model", uri=str(folder / "model"), metadata={"model": "ama-r"})
    artifacts.seal([model])
    return model


def key(cache: StageCache, model: dsl.Model, name: str = "comp-evaluate") -> str:
    return cache.compute_key(component_name=name, image="i", full_command=["c"], arguments={"model": model})


@pytest.fixture
def cache(tmp_path: Path) -> StageCache:
    return StageCache(tmp_path / "own", tmp_path / "attempt", tmp_path / "shared")


def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    assert shared_cache_folder(tmp_path / "mine").stat().st_mode & 0o777 == 0o700
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(ConfigError, match="open is not yours alone"):
        shared_cache_folder(tmp_path / "open")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    os.chown(shared_cache_folder(tmp_path / "theirs"), 12345, -1)
    with pytest.raises(ConfigError, match="theirs is not yours alone"):
        shared_cache_folder(tmp_path / "theirs")


def test_the_content_of_an_artifact_identifies_it_not_its_path(cache: StageCache, tmp_path: Path) -> None:
    one, same = sealed_model(tmp_path / "a"), sealed_model(tmp_path / "b")
    other = sealed_model(tmp_path / "c", "other weights")
    assert key(cache, one) == key(cache, same) != key(cache, other)
    assert key(cache, one) == key(cache, one, "comp-evaluate-4"), "kfp numbers the uses of a component"
    assert key(cache, one) != key(cache, one, "comp-compare")


def test_a_result_is_linked_into_the_run_that_uses_it(cache: StageCache, tmp_path: Path) -> None:
    original = sealed_model(tmp_path / "other run")
    cache.shared[0].put("k", {"model": original})
    outputs = cache.get("k")
    assert outputs is not None
    path = Path(outputs["model"].path)
    assert path.is_relative_to(tmp_path / "attempt")
    assert (path / "weights").samefile(Path(original.path) / "weights")
    own_cache = StageCache(tmp_path / "own", tmp_path / "attempt", None)
    assert own_cache.get("k") is not None, "the run folder's own cache now has it"


@pytest.mark.parametrize("change", ["altered", "removed", "added"])
def test_a_result_that_has_changed_is_not_used(
    change: str, cache: StageCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LOGS_VARIABLE, str(tmp_path))
    original = sealed_model(tmp_path / "run")
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
        pytest.fail("a stage does not start with it")


def test_an_artifact_with_metadata_only_is_not_lost(cache: StageCache, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    metrics = dsl.Metrics(name="metrics", uri=str(tmp_path / "run" / "metrics"), metadata={"accuracy": 0.5})
    cache.put("k", {"metrics": metrics})
    outputs = cache.get("k")
    assert outputs is not None
    assert outputs["metrics"].metadata == {"accuracy": 0.5}
