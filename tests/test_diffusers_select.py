"""FsScheduler.select: a pipeline's loop goes on with some of its samples, and each ends where it
would have ended in the whole batch.
"""

import diffusers
import numpy as np
import pytest
import torch
from choosing import plan_of

import fastsample

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
diffusers.utils.logging.set_verbosity_error()
SOURCES = {
    "DPMSolverMultistep": {"solver_order": 3},
    "UniPCMultistep": {},
    "HeunDiscrete": {},
    "DPMSolverSinglestep": {},
    "FlowMatchEulerDiscrete": {"shift": 3.0},
    "EulerAncestralDiscrete": {},
    "LCM": {},
    "DDIM": {"thresholding": True, "clip_sample": False},
}
INDICES = ([2, 0, 3, 1], [3], [1, 1, 2], torch.tensor([0, 3]), np.array([2, 1]))


def scheduler_of(source, compat=None):
    peer = getattr(diffusers, f"{source}Scheduler")(**SOURCES[source])
    return fastsample.FsScheduler.from_config(peer, compat=compat)


def start(dtype):
    g = torch.Generator().manual_seed(3)
    return torch.randn(4, 2, 6, generator=g, dtype=torch.float64).to(dtype)


def generators(index=range(4)):
    """One a sample, so that each draws its own numbers in any company."""
    return [torch.Generator().manual_seed(int(k)) for k in index]


def loop(scheduler, x, chosen=None):
    """The end of the loop. chosen: step -> the samples it goes on with after it."""
    scheduler.set_timesteps(6)
    x, made = x * scheduler.init_noise_sigma, generators()
    for i, t in enumerate(scheduler.timesteps):
        f = 0.3 * scheduler.scale_model_input(x, t)
        x = scheduler.step(f, t, x, generator=made).prev_sample
        index = (chosen or {}).get(i)
        if index is not None:
            scheduler.select(index)
            states = [made[int(k)].get_state() for k in index]
            x, made = x[torch.as_tensor(index)], generators(range(len(index)))
            for g, state in zip(made, states, strict=True):
                g.set_state(state)
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("compat", [None, "diffusers"])
@pytest.mark.parametrize("source", SOURCES)
def test_each_sample_ends_where_it_would_have(source, compat, dtype):
    scheduler, x = scheduler_of(source, compat), start(dtype)
    whole = loop(scheduler, x)
    for index in INDICES:
        for at in (0, 2, len(scheduler.timesteps) - 1):
            got = loop(scheduler, x, {at: index})
            assert torch.equal(got, whole[torch.as_tensor(index)]), (index, at)
    assert torch.equal(loop(scheduler, x, {1: [3, 2, 1], 3: [2, 0]}), whole[[1, 3]])
    assert torch.equal(loop(scheduler, x), whole)  # and runs are kept for their own shape


def test_noise_that_a_later_row_reads_again_moves():
    plan = plan_of("euler_ancestral", n=6)
    ids = plan.ids.copy()
    ids[5] = ids[1]
    scheduler = fastsample.FsScheduler.from_plan(plan.with_numbers(ids=ids))
    x = start(torch.float32)
    whole = loop(scheduler, x)
    for index in ([2, 0, 3, 1], [3], [1, 1, 2]):
        assert torch.equal(loop(scheduler, x, {2: index}), whole[index])


def test_an_edit_beside_it_is_a_new_state():
    """Half precision: samples that are not those of the state are taken as they are handed in."""
    scheduler, x = scheduler_of("DPMSolverMultistep"), start(torch.bfloat16)
    ends = []
    for edit in (0.0, 0.5):
        scheduler.set_timesteps(6)
        y = x * scheduler.init_noise_sigma
        for i, t in enumerate(scheduler.timesteps):
            y = scheduler.step(0.3 * y, t, y).prev_sample
            if i == 2:
                scheduler.select([1, 2])
                y = y[[1, 2]] + edit
        ends.append(y)
    assert (ends[0] - ends[1]).abs().min() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("source", ["UniPCMultistep", "HeunDiscrete", "DPMSolverSinglestep"])
def test_an_edit_beside_it_means_what_it_means_without(source, dtype):
    """Where a class keeps an earlier sample: before the choice, after it, and in place."""
    scheduler = scheduler_of(source)
    index, edits = torch.tensor([2, 0, 0]), (lambda x: 0.9 * x, lambda x: x.mul_(0.9))

    def end(edit, at, choose, before):
        scheduler.set_timesteps(6)
        x = start(dtype) * scheduler.init_noise_sigma
        for i, t in enumerate(scheduler.timesteps):
            if i == at:
                x = edit(x) if before else x
                if choose:
                    scheduler.select(index)
                    x = x[index]
                x = x if before else edit(x)
            x = scheduler.step(0.3 * scheduler.scale_model_input(x, t), t, x).prev_sample
        return x

    for edit in edits:
        for at in (3, 4):
            whole = end(edit, at, False, True)[index]
            for before in (True, False):
                found = end(edit, at, True, before)
                torch.testing.assert_close(found, whole, rtol=4 * torch.finfo(dtype).eps, atol=0)


def test_what_does_not_fit_is_refused():
    scheduler, x = scheduler_of("UniPCMultistep"), start(torch.float32)
    with pytest.raises(ValueError, match="FsScheduler.select: there are no timesteps yet"):
        scheduler.select([0])
    scheduler.set_timesteps(6)
    scheduler.select([0])  # before the first step there is nothing to move
    t = scheduler.timesteps
    x = scheduler.step(0.3 * x, t[0], x).prev_sample
    with pytest.raises(ValueError, match="FsScheduler.select: index names sample 4 of 4"):
        scheduler.select([4])
    with pytest.raises(TypeError, match="FsScheduler.select: index is a mask"):
        scheduler.select(x[:, 0, 0] > 0)
    scheduler.select([0, 1])
    with pytest.raises(ValueError, match=r"sample is \[4, 2, 6\] after \[2, 2, 6\]"):
        scheduler.step(0.3 * x, t[1], x)
