"""The published per-sample step-size search, as a peer for bench_search.py; written from its
description, used only for comparison.

    X[j] = teacher Euler states
    for each image, for k = 1..M, for i = N..1:
        v = v(z[i], t_i)
        for every j < i:
            y = z[i] + (t_j - t_i) v
            c = mean (y - X[j])^2
            if c < dp[k][j]: dp[k][j] = c, trace[k][j] = i, z'[j] = y

Pei et al. 2025 (arXiv 2503.21774), alg. 1 with the habits of its released form: flow coordinates
x / (alpha + sigma), t = sigma / (alpha + sigma); one image and one node per model call; every node
starts as the noise (a free start); a layer starts from the last one's costs and traces; one search
per budget; the schedule of a model is the middle node at each position over the images' own
schedules.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsample.model import Model, to_x0


class Velocity:
    """v(x, i) = eps - x0 of a model in flow coordinates, at node i of a grid counted from the data
    end; counts rows.
    """

    def __init__(self, model: Model, grid: np.ndarray, cond: dict[str, Tensor]):
        self.model, self.cond, t = model, cond, np.asarray(grid, np.float64)[::-1].copy()
        alpha, sigma = model.schedule.alpha(t), model.schedule.sigma(t)
        self.alpha, self.sigma, self.flow = alpha, sigma, sigma / (alpha + sigma)
        self.time, self.scale = np.zeros(len(t)), np.zeros(len(t))
        self.time[1:], self.scale[1:] = model.times(t[1:]), model.scales(t[1:])
        self.rows = 0

    def __call__(self, z: Tensor, i: int, samples: slice) -> Tensor:
        a, s = float(self.alpha[i]), float(self.sigma[i])
        x = z * (a + s)
        words = {k: v[samples] for k, v in self.cond.items()}
        label = torch.full((len(x),), float(self.time[i]))
        f = self.model(x * float(self.scale[i]), label, **words)
        self.rows += len(x)
        p, q = to_x0(self.model.prediction, a, s, self.model.sigma_data)
        x0 = p * x + q * f
        return (x - a * x0) / s - x0


@dataclass(frozen=True)
class Published:
    path: list[int]  # nodes from the data end: start, ..., 0
    rows: int  # model evaluations, over all images
    seconds: float


@torch.no_grad()
def search(
    model: Model,
    noise: Tensor,
    grid: np.ndarray,
    budget: int,
    cond: dict[str, Tensor] | None = None,
) -> Published:
    """The median schedule of `budget` steps over noise [B,*]."""
    begin, velocity, N = time.perf_counter(), Velocity(model, grid, cond or {}), len(grid) - 1
    X = [None] * N + [noise * float(velocity.flow[N])]
    for i in range(N, 0, -1):
        step = float(velocity.flow[i - 1] - velocity.flow[i])
        X[i - 1] = X[i] + step * velocity(X[i], i, slice(None))
    samples = [slice(b, b + 1) for b in range(len(noise))]
    paths = [_one(velocity, [x[own] for x in X], budget, own) for own in samples]
    ranked, half = np.sort(np.array(paths), axis=0), len(paths) // 2
    median = (ranked[half] + ranked[(len(paths) - 1) // 2]) // 2
    return Published(median.tolist(), velocity.rows, time.perf_counter() - begin)


def _one(velocity: Velocity, X: list[Tensor], budget: int, sample: slice) -> list[int]:
    N, t = len(X) - 1, velocity.flow
    z, after = [X[N]] * (N + 1), [X[N]] * (N + 1)
    cost, trace = [float("inf")] * (N + 1), [N] * (N + 1)
    traces = []
    for _ in range(budget):
        for i in range(N, 0, -1):
            v = velocity(z[i], i, sample)
            for j in range(i):
                landed = z[i] + float(t[j] - t[i]) * v
                c = ((landed - X[j]) ** 2).mean()
                if c < cost[j]:
                    cost[j], trace[j], after[j] = c, i, landed
        traces.append(list(trace))
        z = list(after)
    path = [0]
    for trace in reversed(traces):
        path.append(trace[path[-1]])
    return path[::-1]


@torch.no_grad()
def sample(
    model: Model,
    noise: Tensor,
    grid: np.ndarray,
    path: list[int],
    cond: dict[str, Any] | None = None,
    batch: int = 128,
) -> Tensor:
    """End points [B,*] of Euler along a found path; the noise stands at the path's first node as it
    is.
    """
    velocity, ends = Velocity(model, grid, cond or {}), []
    for first in range(0, len(noise), batch):
        rows = slice(first, min(first + batch, len(noise)))
        x = noise[rows] * float(velocity.flow[-1])
        for i, j in zip(path[:-1], path[1:], strict=True):
            x = x + float(velocity.flow[j] - velocity.flow[i]) * velocity(x, i, rows)
        ends.append(x)
    return torch.cat(ends)
