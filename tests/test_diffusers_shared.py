"""What schedulers of one config share: loops and plans that one has compiled, and no run."""

import gc
import pickle
import threading
import weakref

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample.interop.diffusers import config as compiled
from fastsample.interop.diffusers import runs

diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.set_verbosity_error()
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def of(name="DPMSolverMultistep", compat="auto", **config):
    source = getattr(diffusers, f"{name}Scheduler")
    return fs.FsScheduler.from_config(source(**SD | config), compat=compat)


@pytest.fixture
def made(monkeypatch):
    """How many plans were compiled."""
    count, own = [], compiled.plan
    monkeypatch.setattr(compiled, "plan", lambda *a, **k: count.append(1) or own(*a, **k))
    monkeypatch.setattr(runs, "_shared", {})
    return count


def end(scheduler, x):
    for t in scheduler.timesteps:
        x = scheduler.step(0.1 * x, t, x).prev_sample
    return x


@pytest.mark.parametrize("compat", ["diffusers", None])
def test_a_fresh_scheduler_of_an_equal_config_compiles_nothing(made, compat):
    x = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    first = of(compat=compat)
    first.set_timesteps(6)
    right, count = end(first, x), len(made)
    assert count > 0
    for fresh in (of(compat=compat), pickle.loads(pickle.dumps(first))):
        fresh.set_timesteps(6)
        assert len(made) == count and fresh.plan is first.plan
        assert fresh._loops.spares is not first._loops.spares
        assert torch.equal(end(fresh, x), right)
    fresh.set_timesteps(7)
    assert len(made) > count


@pytest.mark.parametrize(
    "other",
    [
        {"solver_order": 3},
        {"solver_order": 1},
        {"beta_end": 0.0121},
        {"use_karras_sigmas": True},
        {"trained_betas": list(np.linspace(0.001, 0.02, 1000))},
        {"trained_betas": list(np.linspace(0.001, 0.021, 1000))},
    ],
)
def test_another_config_is_another_one(made, other):
    seen = []
    for config in ({}, other, {"trained_betas": list(np.linspace(0.001, 0.022, 1000))}):
        scheduler = of(**config)
        scheduler.set_timesteps(6)
        assert all(scheduler._runs is not r for r in seen)
        seen.append(scheduler._runs)


def test_modes_and_shifts_do_not_mix(made):
    source = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    peer, exact = (fs.FsScheduler.from_config(source, compat=c) for c in ("diffusers", None))
    other = fs.FsScheduler.from_config(source, compat="diffusers")
    other.set_shift(5.0)
    for scheduler in (peer, exact, other):
        scheduler.set_timesteps(5)
    assert peer.plan.note != exact.plan.note or peer.plan is not exact.plan
    assert not torch.equal(peer.sigmas, other.sigmas)
    source.set_shift(5.0)
    source.set_timesteps(5)
    assert torch.equal(other.sigmas, source.sigmas)


def test_what_is_shared_is_bounded_and_holds_no_run(made):
    x = torch.randn(1, 2, 3, 3)
    for k in range(runs.SHARED + 5):
        scheduler = of(beta_end=0.012 + 1e-5 * k)
        scheduler.set_timesteps(3)
    assert len(runs._shared) == runs.SHARED
    end(scheduler, x)
    (_, run), *_ = scheduler._loops.spares._idle
    alive = weakref.ref(run)
    del run, scheduler
    gc.collect()
    assert alive() is None


def test_threads_that_begin_together_agree(made):
    x, ends = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0)), []
    begin = threading.Barrier(4)

    def work():
        scheduler = of("UniPCMultistep")
        begin.wait()
        scheduler.set_timesteps(5)
        ends.append(end(scheduler, x))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ends) == 4 and all(torch.equal(e, ends[0]) for e in ends)


def test_a_config_put_in_place_of_another_is_read_again():
    """As pipelines do with steps_offset and clip_sample."""
    scheduler = of("DDIM")
    scheduler.set_timesteps(5)
    before = scheduler.timesteps
    scheduler.register_to_config(steps_offset=1)
    scheduler.set_timesteps(5)
    assert torch.equal(scheduler.timesteps, before + 1)
