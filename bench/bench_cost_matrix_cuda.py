"""`cost_matrix` on a GPU, at the problem of bench_cost_matrix.py: wrong argmins, multiply-adds a
second, and its time against a matrix product (|u|² - 2 u x + |x|² in float32, as cdist has it) and
against a torch loop over the sources.
"""

import numpy as np
import pytest
import torch
from bench_cost_matrix import D, N, costs_in_float64, problem
from gpu import KIND, captured, cut, on_device, ratios
from measure import figure

from fastsample.kernels.cost_matrix import argmin_source, cost_matrix

pytestmark = pytest.mark.gpu


def by_product(u, c, x):
    """The squares written out, and what pairs share taken from one product of matrices."""
    (u, v), (a, b), x = (part[0] for part in u), c.float(), x[0]
    ux, vx = (torch.cat([u, v]) @ x.T).split(len(u))
    uu, uv, vv = ((s * t).sum(1)[:, None] for s, t in ((u, u), (u, v), (v, v)))
    jump = a * a * uu + 2 * a * b * uv + b * b * vv
    return (jump - 2 * (a * ux + b * vx) + (x * x).sum(1)) / x.shape[1]


def by_source(u, c, x):
    """The definition, the targets of one source at a time."""
    (u, v), (a, b), x = (part[0] for part in u), c.float(), x[0]
    away = (a[i, :, None] * u[i] + b[i, :, None] * v[i] - x for i in range(len(u)))
    return torch.stack([part.square().mean(1) for part in away])


def wrong_argmins(cost, band, best):
    """How many targets after the first have another source than in float64."""
    inside = torch.arange(cost.shape[1], device=cost.device) >= band[:, :1]
    found = argmin_source(torch.where(inside, cost, torch.inf))
    return int((found[1:].cpu().numpy() != best).sum())


def bench_cost_matrix_cuda(benchmark):
    """Target: no wrong argmin."""
    benchmark.group = "gpu cost_matrix"
    points, width = cut(N, 8), cut(D, 256)
    u, c, x, band = problem(points, width)
    truth = costs_in_float64(u, c, x)
    best = points - 1 - np.argmin(truth[::-1, 1:], axis=0)  # ties: the highest source
    u, (c, x, band) = [part.to(KIND) for part in u], (v.to(KIND) for v in (c, x, band))
    with torch.inference_mode():
        wrong = wrong_argmins(cost_matrix(u, c, x, band)[0], band, best)
        theirs = wrong_argmins(by_product(u, c, x), band, best)
        name = f"cost_matrix, N={points}, D={width}"
        what = f"{name}: wrong argmins against float64"
        figure(benchmark, what, wrong, target=0, better="equal")
        if wrong:
            raise AssertionError(
                f"cost_matrix: {wrong} of {points - 1} argmins differ from float64"
            )
        ours = captured(lambda: cost_matrix(u, c, x, band))
        peers = {"product": lambda: by_product(u, c, x), "sources": lambda: by_source(u, c, x)}
        peers = {peer: captured(work) for peer, work in peers.items()}
        own, others = on_device(benchmark, ours, peers, calls=cut(5, 1))
    operations = 3 * width * points * (points - 1) // 2
    benchmark.extra_info.update(multiply_adds=operations)
    figure(benchmark, f"{name}: one call", [s * 1e6 for s in own], "µs")
    speeds = [operations / s / 1e12 for s in own]
    figure(benchmark, f"{name}: multiply-adds per second", speeds, "T/s")
    figure(benchmark, f"{name}: wrong argmins of the product", theirs)
    figure(benchmark, f"{name}: against the product", ratios(others["product"], own), "x")
    loop = ratios(others["sources"], own)
    figure(benchmark, f"{name}: against a torch loop over sources", loop, "x")
