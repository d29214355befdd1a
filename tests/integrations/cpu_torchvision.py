"""PyPI's torchvision beside a torch without CUDA, for hosts that import it (import this first).

Its compiled operators are built against the CUDA torch and cannot load; then its Python part stops
at the first operator that it describes and does not find. Declared, they are found; they cannot be
called, and no test does.
"""

import torch

OPERATORS = ["nms", "qnms"]
POOLED = ["roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"]
library = torch.library.Library("torchvision", "DEF")
for name in (*OPERATORS, *POOLED, *(f"_{name}_backward" for name in POOLED)):
    library.define(f"{name}(Tensor x) -> Tensor")
