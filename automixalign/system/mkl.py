"""MKL's vector functions, each called once before several threads call it.

MKL looks for a function's kernel at the first call. Where several threads make that call at once, one of them
may be given a kernel of half the digits, for that call alone and without a word: seen as sines, which a model's
positions are turned into, that were off by 1e-4, and so as other numbers of the same seed. It is so in MKL
2024.2, which torch's builds hold (https://github.com/pytorch/pytorch/issues/188792).
"""

import torch

FUNCTIONS = (
    *("acos", "asin", "atan", "cos", "erf", "erfc", "erfinv", "exp"),
    *("log", "log10", "log2", "sin", "sqrt", "tan", "tanh", "trunc"),
)
"""What torch leaves to MKL, in both precisions (`ATen/cpu/vml.h`)."""


def settle() -> None:
    """Have the kernels found, some milliseconds in all; a tensor of one number is the work of one thread."""
    for dtype in (torch.float32, torch.float64):
        one = torch.ones(1, dtype=dtype)
        for name in FUNCTIONS:
            getattr(torch, name)(one)
