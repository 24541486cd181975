"""MLflow: what a run was told, how it went and what it made.

https://mlflow.org/docs/latest/ml/tracking/ - one run a pipeline run, with a nested run a step. A step writes a
`Record` while it works (`record.py`, no MLflow needed); at its end the record goes to a spool folder
(`spool.py`); from there it is sent (`send.py`), by the step itself or, where many steps share a machine, by one
process for all of them (`python -m automixalign.steps.tracking`, which `ama run` starts). A record leaves
the spool only when the server has it, so that an unreachable server costs nobody a result: a later step
sends it, or `ama sync`.
"""
