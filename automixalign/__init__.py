"""AutoMixAlign: multi-task preference optimisation of one language model (arXiv 2506.00569).

The library is path in, path out, and knows nothing of Kubeflow; `components/` wraps it, `pipelines/` chains it.
Start reading at `mixers.py` (the algorithm), then `trainer.py` (how a step uses it).
"""

__version__ = "0.1.0"
