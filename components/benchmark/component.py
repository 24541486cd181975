"""One model on benchmarks of lm-evaluation-harness."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def benchmark(
    settings: str,
    tokenizer: Input[Artifact],
    model: Input[Model],
    results: Output[Artifact],
    base_model: Input[Model] = None,  # kfp's form of an optional
) -> None:
    """Measure one model on public benchmarks, or on tasks of the user's own, by lm-evaluation-harness.

    Args:
        settings: `BenchmarkSettings` as JSON.
        tokenizer: of all models.
        model: the model; its metadata hold its name and family.
        results: folder with each benchmark's metrics in `results.json`, and each example with the answers.
        base_model: the base of a LoRA model.
    """
    from pathlib import Path

    from automixalign.config.evaluation import BenchmarkSettings
    from automixalign.scoring.benchmarks.run import run_benchmarks
    from automixalign.steps.artifacts import flat
    from automixalign.steps.step import run_step

    name, family = model.metadata["model"], model.metadata["family"]
    with run_step("benchmark", name, reads=flat(tokenizer, model, base_model), writes=[results]):
        run_benchmarks(
            settings=BenchmarkSettings.model_validate_json(settings),
            name=name,
            family=family,
            tokenizer=Path(tokenizer.path),
            model=Path(model.path),
            output=Path(results.path),
            base_model=Path(base_model.path) if base_model else None,
        )
        results.metadata.update(model=name, family=family, run_path=f"benchmarks/{name}")
