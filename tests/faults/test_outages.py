"""The fault bench's outages, as far as they are quick; `python -m benchmarks.faults` has all of them."""

from pathlib import Path

import pytest

from benchmarks.faults import machine, mlflow_outages, numbers, s3_outages
from benchmarks.faults.case import Case

SLOW = {
    "s3_outages": {
        "busy (503 SlowDown)",
        "cut in a single upload",
        "cut twice in a download",
        "cut twice in a single upload",
        "cut twice in an upload of parts",
        "a bit flips on the way up",
        "a download falls silent",
        "down at start of `ama run`",
        "killed in the publish step, and back",
        "silent twice",
        "silent: no answer comes",
        "slow: every answer waits",
    },
    "mlflow_outages": {
        "`ama run`, server down",
        "`register`, answers 500",
        "answers 500",
        "answers are lost",
        "answers with a web page",
        "down all the time",
        "killed at the end",
        "killed in the middle",
        "silent",
        "slow",
        "the SQLite store is damaged",
        "the SQLite store is locked",
    },
    "numbers": {
        "`ama run`, a specialist diverges",
        "a model evaluated on fewer pairs",
        "a specialist diverges, bf16",
        "base model models:/ with a NaN",
        "the last step spoils an adapter",
    },
    "machine": {
        "disk full: `ama run`",
        "disk full: MLflow's store",
        "disk full: checkpoints",
        "disk full: compare",
        "disk full: evaluate",
        "disk full: prepare_base_model",
        "disk full: reference_logps",
        "disk full: specialist_losses",
        "disk full: train_specialist",
        "killed for memory: `ama run`",
        "memory limit: a training",
        "memory limit: scoring",
    },
}
"""By group: they take many seconds, or say little that another one does not."""

GROUPS = {"s3_outages": s3_outages, "mlflow_outages": mlflow_outages, "numbers": numbers, "machine": machine}
CASES = [case for group in GROUPS.values() for case in group.CASES]
needs_mount = pytest.mark.skipif(not machine.may_mount(), reason="a tmpfs can only be mounted as root")


def test_what_is_left_out_is_in_the_bench() -> None:
    for group, names in SLOW.items():
        assert {case.name for case in GROUPS[group].CASES} > names


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case, id=f"{case.group}: {case.name}", marks=[needs_mount] if case.group == "machine" else []
        )
        for case in CASES
        if case.name not in SLOW[case.group]
    ],
)
def test_fault(case: Case, tmp_path: Path) -> None:
    assert case.run(tmp_path)
