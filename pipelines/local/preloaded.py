"""What the steps of a local run import; imported once, in the process that they are forks of (`warm.py`).

Most of it is needed before a model can be trained or scored. What few steps need is not here: mergekit, mlflow,
boto3.
"""

import gc
import os
from importlib import import_module

NAMES = (
    "automixalign.models.load",
    "automixalign.report.compare",
    "automixalign.data.prepare",
    "automixalign.scoring.evaluate",
    "automixalign.training.specialist_losses",
    "automixalign.quickstart.tiny_model",
    "automixalign.training.trainer",
    "kfp.dsl.executor_main",
    "peft",
    "transformers.models.auto.modeling_auto",
)

os.environ["_KFP_RUNTIME"] = "true"  # as in every step: kfp leaves out what only its compiler and client need
# Imports make objects that stay. Looking for what can go, again and again, takes a third of the time.
gc.disable()
for name in NAMES:
    import_module(name)
gc.freeze()  # a collection in a fork leaves alone what it shares with the others
gc.enable()
