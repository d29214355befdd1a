"""The kernels in plain torch: the definition every backend is held to, on every device and for
every dtype.

Sums are formed left to right in the order written, each product and sum rounded on its own (no
fused multiply-add).
"""

import torch

from .cost_matrix import cost_gather as cost_gather
from .cost_matrix import cost_matrix as cost_matrix
from .moments import moments as moments
from .noise import fill as fill
from .step import bind as bind


def covers(kernel: str, device: torch.device, dtype: torch.dtype) -> None:
    """Everything."""
