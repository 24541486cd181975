"""MLflow: the parameters, metrics and artifacts of a run, as one MLflow run with a nested run for each stage.

A stage fills a `Record` (`record.py`, without MLflow). `delivery.py` puts it into a spool folder (`spool.py`)
when the stage ends. `send.py` sends it: in the stage's process, or in one process for all stages of a local
run (`__main__.py`, which `ama run` starts). A record leaves the spool when the server has it, so nothing is
lost when a server is down: a later stage or `ama sync` sends it. https://mlflow.org/docs/latest/ml/tracking/
"""
