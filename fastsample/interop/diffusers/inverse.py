"""The classes that run from data to noise: DDIMInverse and DPMSolverMultistepInverse. No torch, no
diffusers.

A run of n steps goes up the class's own points. DDIMInverse's timesteps are told where a step ends,
and its first step begins at no noise; an exact run takes the image as the state at timestep 0, as
`solvers.inverted` does, and tells every level its own timestep, so that a first step from no noise
to timestep 0 is left out. DPMSolverMultistepInverse's stand where a step begins; where its last one
has no length (trailing, Karras, ..), an exact run has one point more at the other end instead. On
flow sigmas diffusers' class runs from noise to data, and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ... import solvers
from ...model import Model, to_eps
from ...plan import Plan
from ...schedules import DiscreteVP
from ...solvers._build import Builder, M, X
from .dpm import Form, dpm, multistep_orders
from .grids import CONVERSIONS, Points, convert, count, indices, levels_of
from .steps import RAW

DDIM, DPM = "DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler"
INVERSE = (DDIM, DPM)
CITE = [
    "Song, Meng, Ermon 2021, Denoising Diffusion Implicit Models, eq. 12 and sec. 4.3, "
    "arXiv:2010.02502"
]


def inverse_points(
    source: str, config: Mapping, schedule: DiscreteVP, steps: int | None, timesteps, sigmas
) -> Points:
    """The exact grid, rising from timestep 0, or the class's first, to its noisiest."""
    if timesteps is not None or sigmas is not None:
        what = "timesteps" if sigmas is None else "sigmas"
        raise ValueError(
            f"FsScheduler.set_timesteps: {what} of {source}, which goes up a grid of its own; a "
            "number of steps is accepted"
        )
    n, size = count(steps), config["num_train_timesteps"]
    if n > size:
        raise ValueError(
            f"FsScheduler.set_timesteps: {n} steps of {size} timesteps; at most {size} are accepted"
        )
    key = next((key for key in CONVERSIONS if config.get(key)), None)
    if key:
        levels = levels_of(schedule)
        grid = indices(schedule, convert(key, config, levels[0], levels[-1], n + 1)[::-1])
    else:
        grid = np.unique(_spaced(source, config, schedule, n))
        grid = grid if len(grid) > n or grid[0] == 0.0 else np.append(0.0, grid)
    if len(grid) < 2:
        raise ValueError(
            f"FsScheduler.set_timesteps: {n} step of {source} from timestep 0 to {grid[0]:g}; 2 or "
            "more are accepted"
        )
    _check_last(source, config, grid[-1])
    whole = bool((grid == np.round(grid)).all())
    return Points(grid, grid[:-1], schedule, whole)


def inverse_peer_points(
    source: str, config: Mapping, peer, schedule: DiscreteVP, places: np.ndarray
) -> Points:
    """Those of the class itself. places [T + 1]: where each of its timesteps stands, and -1."""
    labels, size = np.asarray(peer.timesteps.cpu(), np.float64), config["num_train_timesteps"]
    if source == DPM:
        levels = np.asarray(peer.sigmas.cpu(), np.float64)[: len(labels) + 1]
        return Points(indices(schedule, levels), labels, schedule, True)
    _check_last(source, config, labels[-1])
    begins = np.arange(size) - size // peer.num_inference_steps
    begins = np.where(begins < 0, -1 if config["set_alpha_to_one"] else 0, begins)
    legs = np.stack([places[begins], places[:-1]], 1)
    at = labels.astype(int)
    return Points(np.append(legs[at, 0], legs[at[-1], 1]), labels, schedule, True, legs)


def inverse_maker(source: str, config: Mapping, at: Points, first: int, compat: bool):
    """(maker, its arguments), as `makers.maker`."""
    bounded = bool(config.get("thresholding") or config.get("clip_sample"))
    if source == DDIM:
        ends = at.legs[at.labels[first:].astype(int), 1] if compat else at.grid[first + 1 :]
        if compat or bounded:
            return _ddim, {"ends": ends, "compat": compat}
        return _inverted, {}
    steps, low = len(at.labels), bool(config["lower_order_final"])
    low, euler = low and steps < FULL_ORDER_FROM, bool(config["euler_at_final"])
    noise = not config["algorithm_type"].endswith("++")
    form = Form(noise, False, config["solver_type"], False, bounded, exact=not compat)
    orders = multistep_orders(steps, first, config["solver_order"], low, euler)
    return dpm, {"orders": orders, "form": form, "rising": True}


# -- inside ----------------------------------------------------------------------------------------
FULL_ORDER_FROM = 15  # steps from which the class no longer lowers the order at the end by itself


def _inverted(model: Model, grid) -> Plan:
    return solvers.inverted("ddim", model, grid)


def _ddim(model: Model, grid, *, ends: Sequence[float], compat: bool, clip: float = 0.0) -> Plan:
    """x' = alpha' m + sigma' eps, m = x0 within the clip, eps that of m, or in compat of the
    model's raw output: DDIM's step from every point up to its own of `ends` [n]. One evaluation a
    step. Song et al. 2021, arXiv:2010.02502, eq. 12.
    """
    b = Builder(model, grid, stored="x0", clip=clip, rising=True)
    if b.model.prediction == "x0" and not b.sigma[:-1].all():
        raise ValueError(
            f"FsScheduler.set_timesteps: {DDIM} from no noise, where a model that predicts the "
            "sample says nothing of eps; set_alpha_to_one=False is accepted"
        )
    p, q = (v.tolist() for v in to_eps(b.model.prediction, b.alpha[:-1], b.sigma[:-1]))
    for i, to in enumerate(np.asarray(ends, np.float64).tolist()):
        alpha, sigma = b.level(to)
        eps = p[i] * X + q[i] * RAW if compat else (X - b.alpha[i] * M) / b.sigma[i]
        b.row(b.t[i], to=(alpha, sigma), x=alpha * M + sigma * eps)
    words = {"order": 1, "orders": [1] * b.n, "citations": CITE, "consistent": not compat}
    return b.build("ddim of diffusers, inverted", **words)


def _spaced(source: str, config: Mapping, schedule: DiscreteVP, n: int) -> np.ndarray:
    """The class's own timesteps, and the end of its run."""
    size, kind = config["num_train_timesteps"], config["timestep_spacing"]
    lowest = config.get("lambda_min_clipped", -np.inf)
    last = size - int((schedule.half_log_snr(np.arange(float(size))) < lowest).sum())
    if kind == "trailing":
        times = np.round(np.arange(last, 0, -size / n))[::-1] - 1.0
        return times[times >= 0.0]
    if kind == "linspace":
        return np.round(np.linspace(0.0, last - 1.0, n + 1))
    stride = size // n if source == DDIM else last // (n + 1)
    times = np.arange(n) * float(stride) + config["steps_offset"]
    return times if source == DDIM else np.append(times, last - 1.0)


def _check_last(source: str, config: Mapping, label: float) -> None:
    size = config["num_train_timesteps"]
    if label > size - 1:
        raise ValueError(
            f"FsScheduler.set_timesteps: timestep {label:g} of {source}, with steps_offset = "
            f"{config['steps_offset']}, is beyond {size - 1}; fewer steps are accepted"
        )
