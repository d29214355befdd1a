"""DDPMWuerstchenScheduler: DDPM on a cosine without a table, at times from 1 to 0, at the last of
which no step is made. No torch, no diffusers.

alpha² = cos²((u + s)/(1 + s) pi/2)/cos²(s/(1 + s) pi/2) within [.0001, .9999], with
u = 1 - (1 - t)^scaler, or t^scaler where scaler < 1; alpha² + sigma² = 1. The model predicts eps.
Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 17.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from ...model import Model
from ...plan import Plan
from ...schedules import TrigFlow
from ...solvers._build import ZERO, Builder
from ...solvers._renoise import Level, Step, rise
from .grids import Points, count, falling

NAME = "DDPMWuerstchenScheduler"
LEAST, MOST = 0.0001, 0.9999


def points(config: Mapping, steps: int | None, timesteps, sigmas) -> Points:
    """The grid of `steps` steps from 1 to 0, or of these timesteps [n+1], their end included."""
    if sigmas is not None:
        raise ValueError(
            f"FsScheduler.set_timesteps: sigmas of {NAME}, whose levels are those of its "
            "timesteps; timesteps=, or a number of steps, is accepted"
        )
    if timesteps is not None:
        times = falling("timesteps", timesteps, 1.0)
        count(steps, len(times) - 1)
    else:
        times = np.linspace(1.0, 0.0, count(steps) + 1)
    return _between(times, *levels(config, times))


def peer_points(peer) -> Points:
    """Those of the class itself."""
    kept = np.asarray(peer._alpha_cumprod(peer.timesteps.cpu(), "cpu"), np.float64)
    times = np.asarray(peer.timesteps.cpu(), np.float64)
    return _between(times, np.sqrt(kept), np.sqrt(1.0 - kept))


def levels(config: Mapping, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(alpha, sigma) at times t."""
    power, s = config["scaler"], config["s"]
    u = 1.0 - (1.0 - t) ** power if power > 1.0 else t**power
    turn = math.pi / 2 / (1.0 + s)
    kept = np.clip((np.cos((u + s) * turn) / math.cos(s * turn)) ** 2, LEAST, MOST)
    return np.sqrt(kept), np.sqrt(1.0 - kept)


def model_of(config: Mapping, labels: np.ndarray) -> Model:
    """On the circle, of which the levels are points, whatever the config."""
    circle, told = TrigFlow(1.0, t_min=1e-9), lambda t: labels
    return Model(None, circle, "eps", time=told, model_id="unknown")


def wuerstchen(model: Model, grid, *, ends: np.ndarray) -> Plan:
    """`solvers.ddpm` with the small variance, on levels that may repeat; ends [n]: where each step
    leads, with no noise to 0, whose level is not that of the data.
    """
    b = Builder(model, grid, stored="x0")
    for i, (s, t) in enumerate(pairwise(Level.on(b))):
        x = Step.of(s, t, rise(s, t)).over(b.noise(i) if ends[i] else ZERO)
        b.row(b.t[i], to=b.t[i + 1], x=x)
    cite = ["Ho, Jain, Abbeel 2020, Denoising Diffusion Probabilistic Models, arXiv:2006.11239"]
    words = {"consistent": bool(np.all(ends)), "order": 1, "orders": [1] * b.n, "citations": cite}
    return b.build("ddpm of DDPMWuerstchen", **words)


# -- inside ----------------------------------------------------------------------------------------
def _between(times: np.ndarray, alpha: np.ndarray, sigma: np.ndarray) -> Points:
    return Points(np.arctan2(sigma, alpha), times[:-1], past=(float(times[-1]),))
