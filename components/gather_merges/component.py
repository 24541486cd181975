"""The merges that generalists start from, as one artifact."""

from kfp import dsl
from kfp.dsl import Input, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def gather_merges(
    names: list,  # type: ignore[type-arg]  # kfp knows no list[str]
    models: Input[list[Model]],
    starts: Output[Model],
) -> None:
    """Put some merges into one folder: KFP's backend passes no list to a nested pipeline.

    Args:
        names: of the merges.
        models: all merges.
        starts: folder with the named merges, one folder `MERGE/` each.
    """
    from pathlib import Path

    from automixalign.steps.step import run_step
    from automixalign.storage.files import gather

    with run_step("gather_merges", reads=models, writes=[starts]):
        folders = {model.metadata["model"]: Path(model.path) for model in models}
        gather({name: folders[name] for name in names}, Path(starts.path))
