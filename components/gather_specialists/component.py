"""The results of the loop over the tasks, as one artifact of each kind."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def gather_specialists(
    losses: Input[list[Dataset]],
    all_losses: Output[Dataset],
    all_models: Output[Model],
    models: Input[list[Model]] = None,  # kfp's form of an optional
) -> None:
    """Put specialists and losses into one folder each: KFP's backend passes no list to a nested pipeline.

    Args:
        losses: the specialists' cached losses, one artifact for each task.
        all_losses: folder with one folder `TASK/` each.
        all_models: folder with one folder `TASK/` each; empty without merges.
        models: the specialists, where the pipeline has merges.
    """
    from pathlib import Path

    from automixalign.steps.step import run_step
    from automixalign.storage.files import gather

    reads, writes = [*losses, *(models or [])], [all_losses, all_models]
    with run_step("gather_specialists", reads=reads, writes=writes):
        for artifacts, folder in ((losses, all_losses), (models or [], all_models)):
            gather(
                {artifact.metadata["task"]: Path(artifact.path) for artifact in artifacts}, Path(folder.path)
            )
