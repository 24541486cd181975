"""The process that runs the DAG of one attempt: `python -m pipelines.local ATTEMPT.json`.

This module stays small: multiprocessing imports the main module of a program again in every fork, unless it is
the `__main__` of a package.
"""

import logging
import sys
from pathlib import Path

from automixalign.system import orphans
from pipelines.local.attempt import Attempt
from pipelines.local.runner import run_dag

if __name__ == "__main__":
    orphans.end_with_lock_holder()
    logging.captureWarnings(True)
    run_dag(Attempt.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8")))
