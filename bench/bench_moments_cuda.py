"""`moments` on a GPU: a call's time, its share of the speed of a triad over the bytes it must read,
and a torch expression for each pair in its place.

Each case is first held to the definition on the same device, bit for bit.
"""

import pytest
import torch
from gpu import captured, cut, on_device, random, ratios, rotation, triad
from measure import figure

from fastsample.kernels import moments

pytestmark = pytest.mark.gpu
BATCH, ELEMENTS = 2, 2**23
CASES = [(1, 1), (2, 4), pytest.param((5, 24), marks=pytest.mark.long)]


def per_pair(a, b):
    """The dot products and peaks, in float64 as ours, an expression for each."""
    dots = [[(p.double() * q.double()).sum(1) for q in b] for p in a]
    return torch.stack([torch.stack(row, 1) for row in dots], 1), [p.abs().amax(1) for p in a]


def check(a, b):
    for got, want in zip(moments(a, b), moments(a, b, backend="reference"), strict=True):
        if not torch.equal(got.view(torch.int64), want.view(torch.int64)):
            raise AssertionError("moments: not the definition's bits")


@pytest.mark.parametrize("case", CASES, ids=lambda case: "x".join(map(str, case)))
def bench_moments_cuda(benchmark, case):
    benchmark.group = "gpu moments"
    P, Q, elements = *case, cut(ELEMENTS, 2**11)
    moved = 4 * (P + Q) * BATCH * elements
    sets = [
        [random(BATCH, elements, seed=(P + Q) * k + v) for v in range(P + Q)]
        for k in range(rotation(moved))
    ]
    with torch.inference_mode():
        check(sets[0][:P], sets[0][P:])
        ours = captured(lambda: [moments(v[:P], v[P:]) for v in sets])
        peers = {
            "triad": triad(moved, len(sets)),
            "pairs": captured(lambda: per_pair(sets[0][:P], sets[0][P:])),
        }
        own, others = on_device(benchmark, ours, peers)
    own, streamed = ([s / len(sets) for s in seconds] for seconds in (own, others["triad"]))
    name = f"moments of {P} by {Q}, {BATCH} samples of {elements:,}"
    benchmark.extra_info.update(bytes=moved, sets=str(len(sets)))
    figure(benchmark, f"{name}: one call", [s * 1e6 for s in own], "µs")
    figure(benchmark, f"{name}: share of the triad's speed", ratios(streamed, own, 100), "%")
    figure(benchmark, f"{name}: against torch, pair by pair", ratios(others["pairs"], own), "x")
