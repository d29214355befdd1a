"""The cheapest ways through a grid, where what an interval costs depends on its two ends alone.

Nodes are counted from the data end: 0 = data, N = noise.
"""

from __future__ import annotations

import numpy as np


def shortest(cost: np.ndarray, most: int, growth: float = 1.0) -> dict[int, np.ndarray]:
    """{m: nodes [m+1] from N down to 0} of least summed cost, m = 1..most intervals; exact. The
    k-th interval of a way counts growth^(k-1) times.

    cost [N+1,N+1] float64, of the interval i -> j < i, of any sign; +inf or NaN: not allowed, and
    the rest is not read. Of equal ways the one from the noisier node; an m without a way is left
    out.
    """
    N = len(cost) - 1
    cost = np.where(np.tri(N + 1, k=-1, dtype=bool) & ~np.isnan(cost), cost, np.inf)
    best = np.where(np.arange(N + 1) == N, 0.0, np.inf)
    sources: list[np.ndarray] = []
    found = {}
    for m in range(1, most + 1):
        total = (best[:, None] + growth ** (m - 1) * cost)[::-1]  # argmin takes the first of equals
        sources.append(N - total.argmin(0))
        best = total.min(0)
        if best[0] < np.inf:
            nodes = [0]
            for source in reversed(sources):
                nodes.append(int(source[nodes[-1]]))
            found[m] = np.array(nodes[::-1])
    return found
