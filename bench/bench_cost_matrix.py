"""cost_matrix at N = 100 points of D = 65,536 elements: wrong argmins, multiply-adds per second,
ratio to a loop over pairs.

The data are a search's own: x' = a*x element by element, states X_j on the exact trajectory,
sources one Euler jump from its start, so that the best source of a target lies between its
neighbours and the costs differ by little.
"""

import numpy as np
import torch
from measure import figure, interleaved

from fastsample.kernels.cost_matrix import argmin_source, cost_matrix

N, D = 100, 65536


def problem(N=N, D=D):
    """(U: x and v of the sources [1,N,D] each, c [2,N,N] float64, X [1,N,D], band [N,2]) with jumps
    x_i + (t_j - t_i)*v_i.
    """
    generator = torch.Generator().manual_seed(0)
    rate = torch.linspace(-2.0, 1.0, D, dtype=torch.float64)
    start = torch.randn(D, generator=generator, dtype=torch.float64)
    # Evenly spaced, jumps of i then j-i and j-i then i would tie exactly.
    t = torch.linspace(0.0, 1.0, N, dtype=torch.float64) ** 1.5
    exact = torch.exp(t[:, None] * rate) * start
    jumped = start + t[:, None] * (rate * start)
    c = torch.stack([torch.ones(N, N, dtype=torch.float64), t[None, :] - t[:, None]])
    band = torch.tensor([[i + 1, N] for i in range(N)], dtype=torch.int32)
    return [jumped.float()[None], (rate * jumped).float()[None]], c, exact.float()[None], band


def costs_in_float64(u, c, x):
    """C[i,j] over the band, every product and difference in float64, NumPy; +inf outside."""
    sources, targets = [part[0].double().numpy() for part in u], x[0].double().numpy()
    (N, D), weights = targets.shape, c.numpy()
    out = np.full((N, N), np.inf)
    for i in range(N):
        for j in range(i + 1, N):
            jump = weights[0, i, j] * sources[0][i] + weights[1, i, j] * sources[1][i]
            difference = jump - targets[j]
            out[i, j] = difference @ difference / D
    return out


def per_pair(u, c, x):
    """The plain loop, a torch expression for each pair, float32, as published searches have it."""
    out, (a, b) = torch.full((N, N), torch.inf), c.tolist()
    for i in range(N):
        for j in range(i + 1, N):
            away = a[i][j] * u[0][0, i] + b[i][j] * u[1][0, i] - x[0, j]
            out[i, j] = away.square().mean()
    return out


def bench_cost_matrix(benchmark):
    """Targets: no wrong argmin; 60 G multiply-adds/s with AVX-512 on two threads; 12x the loop over
    pairs.
    """
    benchmark.group = "cost_matrix"
    u, c, x, band = problem()
    truth = costs_in_float64(u, c, x)
    cost = cost_matrix(u, c, x, band)[0]
    best = N - 1 - np.argmin(truth[::-1, 1:], axis=0)  # ties: the highest source
    wrong = int((argmin_source(cost)[1:].numpy() != best).sum())
    pairs = N * (N - 1) // 2
    # Two for the jump less the target, one for the square: 3 multiply-adds an element and pair.
    operations, threads = pairs * D * 3, str(torch.get_num_threads())
    benchmark.extra_info.update(pairs=pairs, multiply_adds=operations, threads=threads)
    what = f"cost_matrix, N={N}, D={D}: wrong argmins against float64"
    figure(benchmark, what, wrong, target=0, better="equal")
    if wrong:
        raise AssertionError(f"cost_matrix: {wrong} of {N - 1} argmins differ from float64")
    with torch.inference_mode():
        loop = {"pairs": lambda: lambda: per_pair(u, c, x)}
        ours, peers = interleaved(benchmark, lambda: lambda: cost_matrix(u, c, x, band), loop)
    speeds = [operations / s / 1e9 for s in ours]
    figure(benchmark, "cost_matrix: multiply-adds per second", speeds, "G/s", target=60)
    ratios = [peer / own for peer, own in zip(peers["pairs"], ours, strict=True)]
    figure(benchmark, "cost_matrix: against a torch loop over pairs", ratios, "x", target=12)
