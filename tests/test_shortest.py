"""shortest: against every path of a small grid."""

import itertools

import numpy as np
import pytest

from fastsample.optimize._shortest import shortest


def summed(cost, nodes):
    return cost[nodes[:-1], nodes[1:]].sum()


@pytest.mark.parametrize("seed", range(4))
def test_no_path_is_cheaper(seed):
    """Costs of both signs, some intervals not allowed."""
    draw, N = np.random.default_rng(seed), 7
    cost = draw.standard_normal((N + 1, N + 1))
    cost[draw.random(cost.shape) < 0.3] = np.inf
    cost[5, 1] = np.nan
    found = shortest(cost, N + 1)
    for m in range(1, N + 2):
        inner = itertools.combinations(range(N - 1, 0, -1), m - 1)
        every = [np.array([N, *nodes, 0]) for nodes in inner]
        sums = [s for s in (summed(cost, nodes) for nodes in every) if s < np.inf]
        assert (m in found) == bool(sums)
        if sums:
            assert len(found[m]) == m + 1 and found[m][0] == N and found[m][-1] == 0
            assert summed(cost, found[m]) == pytest.approx(min(sums), rel=1e-14, abs=1e-14)
    assert found


def test_equal_ways_come_from_the_noisier_node():
    """And what lies on or above the diagonal is not read."""
    found = shortest(np.where(np.tri(5, k=-1), 1.0, -9.0), 6)
    assert {m: nodes.tolist() for m, nodes in found.items()} == {
        1: [4, 0],
        2: [4, 3, 0],
        3: [4, 3, 2, 0],
        4: [4, 3, 2, 1, 0],
    }
