"""AutoMixAlign: multi-task preference optimisation of one language model (arXiv 2506.00569).

The library takes paths and returns paths, and knows nothing of Kubeflow. `components/` wraps it, `pipelines/`
wires the components. Start with `method/mixers.py` (the algorithm), then `training/trainer.py` (one optimiser
step).
"""

import logging

__version__ = "0.1.0"
# peft imports it wherever it is installed. It would log a hint at a hub's compiled code, and every cast.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
