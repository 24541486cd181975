"""Publish a finished run from its run folder, as the stage `publish` does during a run."""

import tempfile
from pathlib import Path

from automixalign.release.publish import portable
from automixalign.report import page
from automixalign.report.leaderboard import CANDIDATES
from automixalign.report.run_folder import LEADERBOARD
from automixalign.report.runs import FACTS, PAGE, Run
from automixalign.storage.publication import Manifest, publish
from automixalign.system.errors import ConfigError


def publish_again(folder: Path, to: str | None, replace: bool) -> tuple[str, Manifest]:
    """Publish a finished run from its run folder: the files that the stage `publish` copies.

    Args:
        folder: the run folder.
        to: the destination; None for the `output` of the run's configuration.
        replace: whether to replace another publication.

    Returns:
        The destination, and the manifest.

    Raises:
        ConfigError: the folder is not that of a finished run, or no destination is known.
        StorageError: the destination holds another publication, or cannot be written.
    """
    run = Run.read(folder)
    output = run.experiment.output
    if to is None and output is None:
        raise ConfigError(f"{folder}: its configuration has no `output`; name a destination with --to")
    destination = to or (output.to if output else "")
    names = ["reference", *(entry["model"] for entry in run.entries if entry["family"] in CANDIDATES)]
    paths = [*(f"models/{name}" for name in names), LEADERBOARD, PAGE, FACTS]
    for path in paths:
        if not (folder / path).exists():
            raise ConfigError(f"{folder} is incomplete: there is no {path}")
    with tempfile.TemporaryDirectory(prefix=".publication-", dir=folder) as temporary:
        scratch = Path(temporary)
        artifacts = portable({path: folder / path for path in paths}, scratch)
        artifacts |= {path: scratch / path for path in (PAGE, FACTS)}
        # Not every model is published, so the page has no links to their cards.
        page.write(run.page_facts() | {"cards": []}, artifacts[PAGE], artifacts[FACTS])
        return destination, publish(artifacts, destination, run=run.experiment.identity, replace=replace)
