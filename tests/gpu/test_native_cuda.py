"""On a GPU: the CUDA kernels give the very bits that the CPU's give, on the current device and
stream, and leave no error behind.
"""

import pytest
import torch

import fastsample as fs
from fastsample.kernels import moments, native
from fastsample.runtime.capturable import CUDA, KIND

pytestmark = pytest.mark.gpu
SCHEDULE = fs.schedules.Flow(shift=3.0)


def same_bits(a, b):
    return torch.equal(a.cpu().view(torch.int32), b.cpu().view(torch.int32))


def final(plan, device, shape, **words):
    """x and the status of a run whose model's outputs are the same numbers everywhere."""
    run = fs.Run(plan, shape=shape, seed=5, device=device, backend="native", **words)
    make = torch.Generator().manual_seed(3)
    for _ in range(plan.nfe):
        f = torch.randn((plan.G * shape[0], *shape[1:]), generator=make)
        f = f.to(device, run.model_input.dtype)
        run.step(list(f.chunk(plan.G)) if plan.G > 1 else f)
    assert run.done
    return run.x, run.status()


@pytest.mark.parametrize("solver", sorted(fs.solvers.SOLVERS))
@pytest.mark.parametrize("shape", [(3, 2, 9, 7), (2, 4, 64, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_whole_runs(solver, shape, dtype):
    plan = fs.solvers.SOLVERS[solver](SCHEDULE, fs.grids.uniform(SCHEDULE, 6), prediction="flow")
    on_cpu, on_gpu = (final(plan, d, shape, model_dtype=dtype) for d in ("cpu", KIND))
    assert all(same_bits(a, b) for a, b in zip(on_cpu, on_gpu, strict=True))


@pytest.mark.parametrize("elements", [1, 127, 4097, 1_000_003])
def test_moments(elements):
    make = torch.Generator().manual_seed(elements)
    a, b = ([torch.randn(2, elements, generator=make) for _ in range(n)] for n in (2, 5))
    on_cpu = moments(a, b, backend="native")
    on_gpu = moments([v.to(KIND) for v in a], [v.to(KIND) for v in b], backend="native")
    for x, y in zip(on_cpu, on_gpu, strict=True):
        assert torch.equal(x.view(torch.int64), y.cpu().view(torch.int64))


@pytest.mark.parametrize("elements", [1, 127, 4097])
def test_fill_on_a_stream_of_its_own(elements):
    seed = torch.tensor([0, -1, 2**40 + 7])
    want, stream = torch.empty(3, elements), CUDA.Stream()
    native.fill(want, seed, 2**32 - 1)
    with CUDA.stream(stream):
        got = torch.full((3, elements), torch.nan, device=KIND)
        native.fill(got, seed.to(KIND), 2**32 - 1)
    stream.synchronize()
    assert same_bits(want, got)
