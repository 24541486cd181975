"""`ama submit`: an experiment's pipeline on a Kubeflow Pipelines server.

reachable.py   refuses what only this machine can see
submission.py  what is sent, and under which names
server.py      the server: who we are to it, the calls, and what its errors mean
following.py   the run's tasks as they change
terminal.py    what is shown of all this, and the exit status

It knows nothing about local runs.
"""
