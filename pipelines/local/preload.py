"""Import what most stages need. `warm_start` forks the stages from a process that has imported this module.

It leaves out what only few stages need: mergekit, mlflow, boto3. bitsandbytes is left out unless the run
quantises a model.
"""

import gc
import os
import sys
from importlib import import_module

from automixalign.config.settings import QUANTIZES_VARIABLE

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

if QUANTIZES_VARIABLE not in os.environ:
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]  # peft imports it if it can, for seconds
os.environ["_KFP_RUNTIME"] = "true"  # as in every stage: kfp then leaves out its compiler and client
gc.disable()  # imports create objects that stay; searching them for garbage takes a third of the time
try:
    for module in MODULES:
        import_module(module)
except ImportError as error:  # multiprocessing would ignore it, and every stage would import everything itself
    raise RuntimeError(f"{module} cannot be imported: {error}") from error
gc.freeze()  # the garbage collector of a fork then skips these objects
gc.enable()
