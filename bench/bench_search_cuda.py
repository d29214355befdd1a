"""A search on a GPU: `oss` for every budget on the embedded model, against the same search on this
machine's CPU.

The two models differ by rounding, so plans may differ where two sources cost nearly the same: the
error that the GPU's search states of each is first held to the CPU's.
"""

from time import perf_counter

import pytest
import torch
from gpu import CUDA, KIND, cut
from measure import figure, interleaved

from fastsample import models
from fastsample.optimize import oss

pytestmark = pytest.mark.gpu
BUDGET, STEPS, NOISES = 10, 40, 16


def search_on(device, budget, steps, noises):
    """() -> the search there."""
    z = torch.randn(noises, 1, 28, 28, generator=torch.Generator().manual_seed(0)).to(device)
    model, cond = models.fashion(device=device), {"label": torch.arange(noises, device=device) % 10}
    return lambda: oss(model, z, budget, solver="euler", teacher=steps, cond=cond)


def bench_search_cuda(benchmark):
    pytest.importorskip("safetensors", reason="safetensors absent, which the embedded model needs")
    benchmark.group = "gpu search"
    budget, steps, noises = cut(BUDGET, 2), cut(STEPS, 4), cut(NOISES, 1)
    ours, theirs = (search_on(device, budget, steps, noises) for device in (KIND, "cpu"))
    found, begun = ours(), perf_counter()
    want, on_cpu = theirs(), perf_counter() - begun
    alike = sum(bool((found.indices[m] == want.indices[m]).all()) for m in want.indices)
    for m, error in want.error.items():
        if not found.error[m] <= 1.05 * error:
            raise AssertionError(
                f"oss: the error at {m} evaluations is {found.error[m]:.3g} on the GPU and "
                f"{error:.3g} on the CPU"
            )
    waited = lambda: (ours(), CUDA.synchronize())
    own, _ = interleaved(benchmark, lambda: waited, {}, cut(3, 1))
    benchmark.extra_info.update(evaluations_per_sample=found.nfe)
    name = f"OSS for every budget to {budget}, {noises} noises"
    figure(benchmark, f"{name}: plans that are the CPU's", alike)
    figure(benchmark, f"{name}: a search", own, "s")
    figure(benchmark, f"{name}: against one on this machine's CPU", [on_cpu / s for s in own], "x")
