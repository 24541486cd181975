"""Any sequence of excesses leaves the task weights a distribution, and a restored mixer goes on alike."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automixalign.method.mixers import registered_mixers
from benchmarks.mixers import AblationOptions
from tests.method.needed_options import needed_options

MIXERS = registered_mixers()
FLAGS = ("anneal", "average_alpha", "optimistic", "task_clip", "unclipped_gradient")
EXCESS = st.floats(min_value=0, max_value=1e4)


@pytest.mark.parametrize("name", MIXERS)
@settings(deadline=None)
@given(data=st.data())
def test_weights_stay_a_distribution_and_state_is_complete(name: str, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, 6), label="tasks")
    tasks_of_k = [f"task-{number}" for number in range(k)]
    options = needed_options(name, tasks_of_k)
    if "eta" in MIXERS[name].schema.model_fields:
        options["eta"] = data.draw(st.floats(0, 10), label="eta")
    if "c" in MIXERS[name].schema.model_fields:
        options["c"] = data.draw(st.floats(0, 1), label="c")
    if issubclass(MIXERS[name].schema, AblationOptions):
        options["discount"] = data.draw(st.floats(0.01, 1), label="discount")
        options |= {flag: data.draw(st.booleans(), label=flag) for flag in FLAGS}
    drawn = data.draw(st.lists(st.integers(1, 50), min_size=k, max_size=k), label="sizes")
    sizes = dict(zip(tasks_of_k, drawn, strict=True))
    batch = data.draw(st.integers(k, 20), label="batch")
    mixer = MIXERS[name](sizes, 1, **options)
    for step in range(data.draw(st.integers(1, 12), label="steps")):
        excess = np.array(data.draw(st.lists(EXCESS, min_size=k, max_size=k), label="excess"))
        restored = MIXERS[name](sizes, 1, **options)
        restored.load(json.loads(json.dumps(mixer.state())))
        tasks = mixer.draw(step, batch)
        assert np.array_equal(restored.draw(step, batch), tasks)
        counts = np.bincount(tasks, minlength=k)
        assert len(counts) == k
        for one in (mixer, restored):
            one.update(excess * counts, counts)
        alpha = mixer.weights()
        assert np.array_equal(restored.weights(), alpha)
        assert np.isfinite(alpha).all()
        assert alpha.sum() == pytest.approx(1)
        assert alpha.min() >= options.get("c", 0) / k * (1 - 1e-9)
