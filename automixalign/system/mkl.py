"""MKL's vector functions, each called once before several threads call it.

MKL selects the kernel of a function at its first call. If several threads make that call at once, one of them
can get a kernel of half the precision, for that call only. The sines of a model's positions were then wrong by
1e-4, and the same seed gave other numbers. MKL 2024.2, which torch's builds contain, does this
(https://github.com/pytorch/pytorch/issues/188792).
"""

import torch

FUNCTIONS = (
    *("acos", "asin", "atan", "cos", "erf", "erfc", "erfinv", "exp"),
    *("log", "log10", "log2", "sin", "sqrt", "tan", "tanh", "trunc"),
)
"""What torch leaves to MKL, in both precisions (`ATen/cpu/vml.h`)."""


def load_kernels() -> None:
    """Call each function once from one thread, which a tensor of one number guarantees; takes milliseconds."""
    for dtype in (torch.float32, torch.float64):
        one = torch.ones(1, dtype=dtype)
        for name in FUNCTIONS:
            getattr(torch, name)(one)
