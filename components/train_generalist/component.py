"""One model for all tasks, by one of the mixing methods."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train_generalist(
    settings: str,
    data: Input[Dataset],
    reference_logps: Input[Dataset],
    losses: Input[Dataset],
    base_model: Input[Model],
    model: Output[Model],
    trajectory: Output[Artifact],
    starts: Input[Model] = None,  # kfp's form of an optional
) -> None:
    """Train a generalist with one mixer, such as uniform, AMA-R or AMA-S.

    Args:
        settings: `GeneralistSettings` as JSON; its method names the mixer.
        data: the prepared splits.
        reference_logps: the reference log-probabilities.
        losses: folder with the specialists' cached losses, one folder `TASK/` each.
        base_model: the reference model, from which the policy starts without `init`.
        model: the generalist, a full model or a LoRA adapter.
        trajectory: JSONL, one line for each optimiser step: task weights, losses, excess, clip fractions.
        starts: folder with the merges that the methods with `init` start from, `MERGE/`.
    """
    from pathlib import Path

    from automixalign.config.methods import GeneralistSettings
    from automixalign.steps.step import run_step
    from automixalign.training.generalist import GeneralistTraining
    from automixalign.training.launch import train

    checked = GeneralistSettings.model_validate_json(settings)
    init, inputs = checked.method.init, [data, reference_logps, losses, base_model]
    reads, writes = [*inputs, starts] if init else inputs, [model, trajectory]
    with run_step("train_generalist", checked.name, reads=reads, writes=writes):
        training = GeneralistTraining(
            settings=checked,
            data=Path(data.path),
            reference_logps=Path(reference_logps.path),
            losses=sorted(Path(losses.path).iterdir()),
            base_model=Path(base_model.path),
            start=Path(starts.path) / init if init else None,
            output=Path(model.path),
            trajectory=Path(trajectory.path),
        )
        facts = train(training)
        labels = {"model": checked.name, "family": "generalist"}
        model.metadata.update(facts, **labels, run_path=f"models/{checked.name}")
        trajectory.metadata.update(facts, **labels, run_path=f"trajectories/{checked.name}.jsonl")
