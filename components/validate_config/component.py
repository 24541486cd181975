"""The first stage: it refuses a configuration that cannot run, and plans the other stages."""

from typing import NamedTuple

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def validate_config(
    config: str,
    parts: list,  # type: ignore[type-arg]  # kfp knows no list[str]
) -> NamedTuple(  # type: ignore[valid-type]  # kfp reads the outputs from this form
    "Plan",
    base_model=str,
    data=str,
    scoring=str,
    specialist=str,
    specialist_losses=str,
    tasks=list,
    generalists=list,
    warm_generalists=list,
    starts=list,
    merges=list,
    evaluation=str,
    benchmarks=str,
    comparison=str,
    registry=str,
    publication=str,
):
    """Check the configuration and its sources, and divide it into the settings of each stage.

    Args:
        config: the experiment, as JSON or YAML (docs/configuration.md lists its keys).
        parts: the optional parts of the pipeline, such as `merges`, `registry` and `output`.

    Returns:
        The settings of each stage as JSON ("" for a stage that the pipeline lacks), and the items of the loops.
    """
    from collections import namedtuple

    from automixalign.preflight.validate import plan
    from automixalign.steps.step import run_step

    with run_step("validate_config"):
        outputs = plan(config, parts).as_outputs()
    return namedtuple("Plan", outputs)(**outputs)  # kfp takes each output by its name
