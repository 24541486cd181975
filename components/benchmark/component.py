"""One model on benchmarks of lm-evaluation-harness."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def benchmark(
    settings: str,
    base_model: Input[Model],
    results: Output[Artifact],
    model: Input[Model] = None,  # kfp's form of an optional
) -> None:
    """Measure one model on public benchmarks, or on tasks of the user's own, by lm-evaluation-harness.

    Args:
        settings: `BenchmarkSettings` as JSON.
        base_model: the base of a LoRA model.
        results: folder with each benchmark's metrics in `results.json`, and each example with the answers.
        model: the model; its metadata hold its name and family. Without one, the base model.
    """
    from pathlib import Path

    from automixalign.config.evaluation import BenchmarkSettings
    from automixalign.scoring.benchmarks.run import run_benchmarks
    from automixalign.steps.step import run_step

    policy = model or base_model
    name, family = policy.metadata["model"], policy.metadata["family"]
    with run_step("benchmark", name, reads=[base_model, policy], writes=[results]):
        run_benchmarks(
            settings=BenchmarkSettings.model_validate_json(settings),
            name=name,
            family=family,
            base_model=Path(base_model.path),
            model=Path(policy.path),
            output=Path(results.path),
        )
        results.metadata.update(model=name, family=family, run_path=f"benchmarks/{name}")
