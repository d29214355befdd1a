"""SCMScheduler: a consistency model on TrigFlow, and a timestep at the end of its list at which no
step is made. No torch, no diffusers.

x = cos(t) x0 + sin(t) sd eps with sd = sigma_data, the standard deviation of x0. The model is told
t; what pipelines hand to step is its output times sd, f = cos(t) sd eps - sin(t) x0, so that
x0 = cos(t) x - sin(t) f. Lu and Song 2024, arXiv:2410.11081, sec. 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ...model import Model
from ...plan import Plan
from ...plan.given import within
from ...schedules import TrigFlow
from ...solvers._build import ZERO, Builder, M
from .grids import Points, checked, count, falling

NAME = "SCMScheduler"
MOST = math.pi / 2
# of its set_timesteps, where nobody says otherwise; the second is that of a run of two steps
ENDS = {"max_timesteps": 1.57080, "intermediate_timesteps": 1.3}


def points(config: Mapping, steps: int | None, timesteps, sigmas, others: Mapping) -> Points:
    """The grid of `steps` steps from max_timesteps to 0, evenly, of two by way of
    intermediate_timesteps; or of these timesteps, or sigma/alpha, [n+1], their end included.
    """
    if timesteps is not None:
        grid = falling("timesteps", timesteps, MOST)
    elif sigmas is not None:
        grid = np.arctan(falling("sigmas", sigmas, math.inf) / config["sigma_data"])
    else:
        n = count(steps)
        grid = np.linspace(_time("max_timesteps", others), 0.0, n + 1)
        if n == 2 and others.get("intermediate_timesteps", ENDS) is not None:
            grid[1] = _time("intermediate_timesteps", others)
    count(steps, len(grid) - 1)
    return replace(checked(grid, grid[:-1]), past=(float(grid[-1]),))


def peer_points(peer) -> Points:
    """Those of the class itself, whose highest timestep may lie above pi/2 by a rounding."""
    labels = np.asarray(peer.timesteps.cpu(), np.float64)
    found = checked(np.minimum(labels, MOST), labels[:-1])
    return replace(found, past=(float(labels[-1]),))


def levels(config: Mapping, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(alpha, sigma) at these timesteps."""
    return np.cos(t), config["sigma_data"] * np.sin(t)


def model_of(config: Mapping, labels: np.ndarray) -> Model:
    """Pipelines divide what they ask it with by sigma_data themselves."""
    spread = float(config["sigma_data"])
    words = {"time": lambda t: labels, "input_scale": np.ones_like, "sigma_data": spread}
    schedule = TrigFlow(spread, t_min=1e-9)
    return Model(None, schedule, "trigflow", **words, model_id="unknown")


def scm(model: Model, grid, *, labels: np.ndarray) -> Plan:
    """`solvers.lcm` without a boundary on TrigFlow, x' = cos(t') x0 + sin(t') sd n, of an output
    that has sd in it. labels [n]: the timesteps, by which x0 is read off x and f.
    """
    b = Builder(model, grid, stored="x0")
    for i, (alpha, sigma) in enumerate(
        zip(b.alpha[1:].tolist(), b.sigma[1:].tolist(), strict=True)
    ):
        b.row(b.t[i], to=b.t[i + 1], x=alpha * M + (sigma * b.noise(i) if sigma else ZERO))
    cite = ["Luo, Tan, Huang, Li, Zhao 2023, Latent Consistency Models, sec. 4, arXiv:2310.04378"]
    plan = b.build("scm of diffusers", order=1, orders=[1] * b.n, citations=cite)
    p, q, asked = plan.p.copy(), plan.q.copy(), plan.call >= 0
    p[asked], q[asked] = np.cos(labels), -np.sin(labels)
    return replace(plan, p=p, q=q)


# -- inside ----------------------------------------------------------------------------------------
def _time(name: str, others: Mapping) -> float:
    value = others.get(name, ENDS[name])
    found = within(value, 0.0, MOST * 1.001)
    if not found:
        raise ValueError(
            f"FsScheduler.set_timesteps: {name} = {value!r:.40}; a number above 0 up to pi/2 is "
            "accepted"
        )
    return min(found, MOST)
