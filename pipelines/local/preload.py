"""Import what most stages need. `warm_start` forks the stages from a process that has imported this module.

It leaves out what only few stages need: mergekit, mlflow, boto3.
"""

import gc
import os
from importlib import import_module

MODULES = (
    "automixalign.data.prepare",
    "automixalign.models.load",
    "automixalign.models.prepare",
    "automixalign.quickstart.tiny_model",
    "automixalign.report.compare",
    "automixalign.scoring.evaluate",
    "automixalign.training.specialist_losses",
    "automixalign.training.trainer",
    "kfp.dsl.executor_main",
    "peft",
    "transformers.models.auto.modeling_auto",
)

os.environ["_KFP_RUNTIME"] = "true"  # as in every stage: kfp then leaves out its compiler and client
gc.disable()  # imports create objects that stay; searching them for garbage takes a third of the time
try:
    for module in MODULES:
        import_module(module)
except ImportError as error:  # multiprocessing would ignore it, and every stage would import everything itself
    raise RuntimeError(f"{module} cannot be imported: {error}") from error
gc.freeze()  # the garbage collector of a fork then skips these objects
gc.enable()
