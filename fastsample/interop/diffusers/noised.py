"""TCD's second output: the sample at the lower level that a step goes down to before it draws.
Imports no diffusers.
"""

from __future__ import annotations

import math

from torch import Tensor

from ...runtime.arguments import state_dtype
from .loop import Loop
from .step_options import Told


def jumped(loop: Loop, eta: Told, model_output: Tensor, sample: Tensor) -> Tensor:
    """x_s [B,*] of the step that the loop made last, from x with the output f: its row is
    x' = r x_s + sqrt(1 - r²) n, and r x_s = (a + b p) x + b q f. In the dtype of x.

    Zheng et al. 2024, arXiv:2402.19159.
    """
    plan, row = loop.begun(0, eta), loop.index  # a row of one step each, whole run or not
    at, weights = plan.layout, plan.M[row, 0]
    a, b = float(weights[0]), float(weights[at.m])
    noise = math.hypot(*(float(weights[at.noise(k)]) for k in range(plan.L)))
    r = math.sqrt((1.0 - noise) * (1.0 + noise))
    x, f = (v.to(state_dtype(sample)) for v in (sample, model_output))
    p, q = float(plan.p[row]), float(plan.q[row])
    return ((a + b * p) / r * x + b * q / r * f).to(sample.dtype)
