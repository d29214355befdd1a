"""The bound of `optimize.ays` between any two levels of a grid, and its descent as published.

Nodes are counted from the data end: 0 is sigma_min, N the noise end. level [N+1] is their half
log-SNR, s = e^-level = sigma/alpha, which may be infinite at N.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ..kernels import cost_matrix, normal
from ..model import Model
from ..runtime import arguments
from ..runtime.sources import seeds as seeds_of
from ..schedules import Schedule
from ..trajectories import Denoiser
from ._given import cut

BLOCK = 16  # samples whose paths are held at a time
POINTS = 12  # of Gauss-Legendre in a cell of the grid
STAGES = (10, 20, 40)  # steps that the published descent optimises
ASIDE = 5  # candidates on either side of a knot; 11 with itself


def nodes_of(schedule: Schedule, sigma_min: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """(t, level) [steps+1] from sigma_min up: evenly spaced in level from t_finite, the noise end
    at t_max.
    """
    top = schedule.half_log_snr(schedule.t_finite)
    t = schedule.time(np.linspace(-np.log(sigma_min), top, steps + 1))
    t[-1] = schedule.t_max
    return t, schedule.half_log_snr(t)


def noised(x0: Tensor, model: Model, t: np.ndarray, seeds: Tensor) -> Tensor:
    """x [n,N+1,D] of one forward path a sample, x0 [n,D]; seeds [n] int64.

    x_k = alpha_k x0 + sigma_k e_k with e_k = W(s_k²)/s_k, W a Brownian motion: e_k =
    (s_{k-1}/s_k) e_{k-1} + sqrt(1 - (s_{k-1}/s_k)²) n_k, so that every two points are drawn
    together as the noising process draws them. Node k draws noise k + 1; 0 is a run's start.
    """
    schedule = model.schedule
    level = schedule.half_log_snr(t)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    e, path = torch.zeros_like(x0), []
    for k in range(len(t)):
        n = normal(seeds, torch.full_like(seeds, k + 1), x0.shape[1]).to(x0)
        step = level[k] - level[k - 1] if k else -np.inf
        e = float(np.exp(step)) * e + float(np.sqrt(-np.expm1(2 * step))) * n
        path.append(float(alpha[k]) * x0 + float(sigma[k]) * e)
    return torch.stack(path, 1)


def differences(
    ask: Denoiser,
    x0: Tensor,
    z: Tensor,
    words: Mapping,
    t: np.ndarray,
    seed: int,
    root: Tensor | None = None,
) -> np.ndarray:
    """C [N+1,N+1] float64: mean over samples of |D_i - D_j|², j < i, along each sample's own path;
    len(t) evaluations a sample, counted in `ask`.

    x0 [B,D]: clean samples; z [B,*]: whose shape and device they have; words: the model's; root
    [B,D]: square roots of what each element counts.
    """
    square, N = torch.zeros((len(t), len(t)), dtype=torch.float64, device=z.device), len(t) - 1
    below = torch.arange(N + 1, dtype=torch.int32, device=z.device)
    band = torch.stack([torch.zeros_like(below), below], 1)
    seeds = seeds_of(seed, len(z), z.device, needed=True)
    for samples in arguments.chunks("ays", len(x0), BLOCK):
        own = {**cut(words, samples), "ranks": words["ranks"]}
        one = Denoiser(ask.model, t, z[samples], dtype=ask.wide, asked=ask.count, **own)
        clean = x0[samples].to(z.device, ask.wide)
        said = one(noised(clean, ask.model, t, seeds[samples]), np.arange(N + 1))
        if root is not None:
            said = said * root[samples, None].to(said)
        one.look()
        square += cost_matrix([said], torch.ones_like(square)[None], said, band).sum(0)
    (square,) = ask.look(square)
    return square * (x0.shape[1] / len(x0))


def intervals(C: np.ndarray, level: np.ndarray, power: float, c: float) -> np.ndarray:
    """K [N+1,N+1]: K_ij = ∫ s^-power E|D(s) - D(s_i)|² ds from s_j to s_i, j < i, of C as
    `differences` gives it.

    With g_i(s) = 1/(s² + c²) - 1/(s_i² + c²), the integrand's shape where the data are Gaussian of
    standard deviation c, every cell of the grid adds the mean of C/g_i at its ends times
    ∫ s^-power g_i ds: the quadrature of the paper's importance sampling, exact for that Gaussian.
    At s_i, where both are 0, C/g_i is that of the node below.
    """
    with np.errstate(over="ignore"):
        angle = np.arctan(np.exp(-level) / c)  # s = c tan(angle): infinite s is pi/2
    ratio, rows = np.zeros_like(C), np.arange(len(C))
    at, weight = np.polynomial.legendre.leggauss(POINTS)
    half, cells = np.diff(angle) / 2, np.zeros_like(C)
    for a, w in zip(at, weight, strict=True):
        there = angle[:-1] + half * (1 + a)
        shape = _between(angle[:, None], there) / np.cos(there) ** 2  # g_i c² (ds/dangle) / c
        cells[:, :-1] += c ** (-1 - power) * w * half * np.tan(there) ** -power * shape
    below = np.tri(len(C), k=-1, dtype=bool)
    ratio[below] = C[below] / (_between(angle[:, None], angle)[below] / c**2)
    ratio[rows[1:], rows[1:]] = ratio[rows[1:], rows[:-1]]
    parts = np.zeros_like(C)
    parts[:, :-1] = (ratio[:, :-1] + ratio[:, 1:]) / 2 * cells[:, :-1]
    return np.where(below, parts, 0.0)[:, ::-1].cumsum(1)[:, ::-1]


def _between(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """cos² low - cos² high, without cancelling."""
    return np.sin(high - low) * np.sin(high + low)


def total(K: np.ndarray, nodes: np.ndarray) -> float:
    """The bound of the steps between these nodes, which decrease."""
    return float(K[nodes[:-1], nodes[1:]].sum())


def descent(K: np.ndarray, start: np.ndarray, most: int, sweeps: int) -> dict[int, np.ndarray]:
    """{m: nodes [m+1]}, m = 1..most, by coordinate descent as published.

    start [11]: nodes of a schedule of 10 steps. Each knot in turn moves to the best of 11 nodes
    about it, between its neighbours, until none moves or for `sweeps` rounds. Then twice, while
    `most` is more, a knot is put half way between every two and the new ones alone are moved.
    Other numbers of steps are read off the longest list, linearly in level.
    """
    nodes, found, new = start.copy(), {}, range(1, len(start) - 1)
    for stage in STAGES:
        if stage > STAGES[0]:
            nodes, new = _halved(nodes), range(1, stage, 2)
        for _ in range(sweeps):
            before = nodes.copy()
            for i in new:
                nodes[i] = _best(K, *nodes[i - 1 : i + 2])
            if np.array_equal(nodes, before):
                break
        found[stage] = nodes.copy()
        if stage >= most:
            break
    for m in set(range(1, most + 1)) - set(found):
        read = np.interp(np.linspace(0, 1, m + 1), np.linspace(0, 1, len(nodes)), nodes)
        found[m] = apart(np.rint(read).astype(np.int64))
    return {m: found[m] for m in range(1, most + 1)}


def apart(nodes: np.ndarray) -> np.ndarray:
    """Nodes that do not increase from N to 0, moved so far that each is below the one before."""
    down = np.arange(len(nodes))[::-1]  # the least that leaves room for those to come
    return np.minimum(
        np.maximum.accumulate((nodes - down)[::-1])[::-1] + down, nodes[0] - down[::-1]
    )


def _best(K: np.ndarray, above: int, here: int, below: int) -> int:
    """The node near `here` of least bound between its neighbours; itself among equals."""
    near = np.arange(max(below + 1, here - ASIDE), min(above, here + ASIDE + 1))
    cost = K[above, near] + K[near, below]
    return here if cost.min() >= K[above, here] + K[here, below] else int(near[cost.argmin()])


def _halved(nodes: np.ndarray) -> np.ndarray:
    """The nodes with one half way between every two."""
    both = np.zeros(2 * len(nodes) - 1, np.int64)
    both[::2], both[1::2] = nodes, (nodes[:-1] + nodes[1:]) // 2
    return apart(both)
