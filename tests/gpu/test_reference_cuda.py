"""On a GPU: the reference kernels give the very bits they give on the CPU, noise and steps, so that
a seed means one picture everywhere.
"""

import pytest
import torch

import fastsample as fs
from fastsample.kernels import normal
from fastsample.runtime.capturable import KIND

pytestmark = pytest.mark.gpu


def same_bits(a, b):
    return torch.equal(a.cpu().view(torch.int32), b.cpu().view(torch.int32))


def outputs(rows, shape):
    """Model outputs that no model made: the same numbers on both devices."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator) for _ in range(rows)]


def final(plan, device, f, shape, dtype):
    run = fs.Run(plan, shape=shape, seed=5, device=device, model_dtype=dtype, backend="reference")
    inputs = []
    for output in f:
        inputs.append(run.model_input.float().cpu().clone())
        run.step(output.to(device, dtype))
    assert run.done
    return run.x, inputs


@pytest.mark.parametrize("noise_id", [0, 1, 2**32 - 1])
@pytest.mark.parametrize("elements", [1, 127, 4097])
def test_noise_bits(noise_id, elements):
    seeds = torch.tensor([0, 1, -1, 2**40 + 7])
    ids = torch.full((len(seeds),), noise_id)
    assert same_bits(normal(seeds.to(KIND), ids.to(KIND), elements), normal(seeds, ids, elements))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("solver", ["ddim", "heun", "unipc", "dpmpp_2m_sde"])
def test_trajectory_bits(solver, dtype):
    schedule = fs.schedules.Flow(shift=3.0)
    plan = fs.solvers.SOLVERS[solver](schedule, fs.grids.uniform(schedule, 5), prediction="flow")
    shape = (3, 2, 9, 7)
    f = outputs(plan.nfe, shape)
    x_cpu, inputs_cpu = final(plan, "cpu", f, shape, dtype)
    x_gpu, inputs_gpu = final(plan, KIND, f, shape, dtype)
    assert all(same_bits(a, b) for a, b in zip(inputs_cpu, inputs_gpu, strict=True))
    assert same_bits(x_cpu, x_gpu)


def test_a_row_of_a_batch_is_the_row_alone():
    schedule = fs.schedules.EDM()
    plan = fs.solvers.dpmpp_2m_sde(schedule, fs.grids.karras(schedule, 4), prediction="edm")
    f = outputs(plan.nfe, (3, 1, 8, 8))
    whole, _ = final(plan, KIND, f, (3, 1, 8, 8), torch.float32)
    run = fs.Run(plan, shape=(1, 1, 8, 8), seed=5 + 2, device=KIND, backend="reference")
    for output in f:
        run.step(output[2:].to(KIND))
    assert same_bits(whole[2:], run.x)
