"""DPO on one task alone."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train_specialist(
    settings: str,
    task_name: str,
    data: Input[Dataset],
    reference_logps: Input[Dataset],
    base_model: Input[Model],
    model: Output[Model],
    trajectory: Output[Artifact],
    scores: Output[Dataset],
) -> None:
    """Train the specialist of a task; generalists are measured against its losses.

    Args:
        settings: `SpecialistSettings` as JSON.
        task_name: the task.
        data: the prepared splits.
        reference_logps: the reference log-probabilities.
        base_model: the policy to start from.
        model: the specialist, a full model or a LoRA adapter.
        trajectory: JSONL, one line for each optimiser step.
        scores: the specialist's log-probabilities of its training pairs, unless cross-fitting makes others.
    """
    from pathlib import Path

    from automixalign.config.training import SpecialistSettings, specialist_name
    from automixalign.steps.step import run_step
    from automixalign.training.launch import train
    from automixalign.training.specialist import SpecialistTraining

    name = specialist_name(task_name)
    reads, writes = [data, reference_logps, base_model], [model, trajectory, scores]
    with run_step("train_specialist", task_name, reads=reads, writes=writes):
        training = SpecialistTraining(
            settings=SpecialistSettings.model_validate_json(settings),
            task=task_name,
            data=Path(data.path),
            reference_logps=Path(reference_logps.path),
            base_model=Path(base_model.path),
            output=Path(model.path),
            trajectory=Path(trajectory.path),
            scores=Path(scores.path),
        )
        facts = train(training)
        labels = {"model": name, "family": "specialist", "task": task_name}
        model.metadata.update(facts, **labels, run_path=f"models/{name}")
        trajectory.metadata.update(facts, **labels, run_path=f"trajectories/{name}.jsonl")
