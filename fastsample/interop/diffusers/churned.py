"""The rows of diffusers' steps with churn, whose noise comes after the model was asked: the steps
of EulerDiscrete and EDMEuler, and of FlowMatchHeun. No torch, no diffusers.

With s = sigma, g = min(s_churn/calls, sqrt(2) - 1) where s_tmin <= s <= s_tmax, else 0, and f the
model's output at x and s, not at the x^ that the noise leads to,

    s^ = (1 + g) s,  x^ = x + sqrt(s^² - s²) s_noise n
    Euler          x' = x^ + (s' - s^)/s^·(x^ - x0),  x0 = p x^ + q f
    FlowMatchHeun  d = (s/s^) f,  x1 = x^ + (s' - s^) d,  x' = x1 + ½ (s' - s^) (f1 - d)

p and q are those of s^, and of s where EulerDiscrete predicts v. FlowMatchHeun draws once more at
x1, a noise that nothing is made of. pred_original_sample stays that of x, where the model was
asked. `solvers.euler` and `solvers.heun` add their noise before they ask. Karras et al. 2022,
arXiv:2206.00364, Alg. 2, is what was meant.
"""

from __future__ import annotations

import math

from ...model import Model, to_x0
from ...plan import Plan
from ...solvers._build import ZERO, Builder, M, R, X
from ...solvers._churn import LARGEST
from .steps import RAW

CITE = ["Karras, Aittala, Aila, Laine 2022, Elucidating the Design Space, Alg. 2, arXiv:2206.00364"]


def euler(model: Model, grid, *, calls: int, own: bool = False, **churn: float) -> Plan:
    """Euler's steps from a point of a run of so many calls on; own: v is scaled by s, not s^.
    churn: s_churn, s_tmin, s_tmax, s_noise.
    """
    b = Builder(model, grid, stored="x0")
    kind, sd = model.prediction, getattr(model.schedule, "sigma_data", 1.0)
    for i, (s, to) in enumerate(zip(b.sigma[:-1].tolist(), b.sigma[1:].tolist(), strict=True)):
        hat, noise = _lifted(s, calls, **churn)
        p, q = (float(v) for v in to_x0(kind, 1.0, s if own and kind == "edm" else hat, sd))
        drawn = noise * b.noise(i) if noise else ZERO
        x = X + drawn
        x = (to / hat) * x + (1.0 - to / hat) * (p * x + q * RAW)
        b.row(b.t[i], to=b.t[i + 1], x=x, reads=drawn)  # x' = x0 has none of it
    return _built(b, "euler with churn of diffusers", churn, [1] * b.n)


def flow_heun(model: Model, grid, *, calls: int, **churn: float) -> Plan:
    """FlowMatchHeun's steps, two calls each but the last; as `euler`."""
    b = Builder(model, grid, stored="flow")
    for i, (s, to) in enumerate(zip(b.sigma[:-1].tolist(), b.sigma[1:].tolist(), strict=True)):
        hat, noise = _lifted(s, calls, **churn)
        x = X + noise * b.noise(i, 0, of=2) if noise else X
        b.row(b.t[i], to=b.t[i + 1], x=x + (to - hat) * (s / hat) * M, keep={f"m{i}": M})
        if i < b.n - 1:
            slope = M - (s / hat) * R(f"m{i}")
            idle = b.noise(i, 1, of=2) if noise else ZERO
            b.row(b.t[i + 1], to=b.t[i + 1], x=X + 0.5 * (to - hat) * slope, reads=idle)
    return _built(b, "heun with churn of diffusers", churn, [2] * (b.n - 1) + [1])


# -- inside ----------------------------------------------------------------------------------------
def _lifted(
    s: float, calls: int, *, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float
) -> tuple[float, float]:
    """(s^, how much noise leads there)."""
    gamma = min(s_churn / calls, LARGEST) if s_tmin <= s <= s_tmax else 0.0
    return (1.0 + gamma) * s, s * math.sqrt(gamma * (2.0 + gamma)) * s_noise


def _built(b: Builder, name: str, churn: dict, orders: list[int]) -> Plan:
    words = {k: v if math.isfinite(v) else None for k, v in churn.items()}
    note = {"arguments": words, "order": 1, "orders": orders, "citations": CITE}
    return b.build(name, consistent=False, **note)
