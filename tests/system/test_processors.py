"""The threads of a stage in a container; the cgroup is faked, because this machine's cannot be changed."""

from pathlib import Path

import pytest
import torch

from automixalign.steps.step import run_step
from automixalign.system import processors


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(processors, "_CGROUP", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("limit", "threads"),
    [
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "max 100000"}, 64),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ({}, 64),
    ],
    ids=["v2", "half a processor", "v2 without limit", "v1", "v1 without limit", "no cgroup"],
)
def test_a_stage_has_as_many_threads_as_its_containers_limit_allows(
    limit: dict[str, str], threads: int, cgroup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in limit.items():
        (cgroup / name).parent.mkdir(exist_ok=True)
        (cgroup / name).write_text(f"{text}\n")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(64))
    monkeypatch.setenv("OMP_NUM_THREADS", "")  # so that the end of the test restores it
    monkeypatch.delenv("OMP_NUM_THREADS")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(64)
        with run_step("train_specialist"):
            assert torch.get_num_threads() == processors.available_processors() == threads
    finally:
        torch.set_num_threads(before)


def test_a_number_of_threads_that_is_set_is_kept(cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cgroup / "cpu.max").write_text("100000 100000\n")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    before = torch.get_num_threads()
    with run_step("train_specialist"):
        assert torch.get_num_threads() == before
