"""What an FsScheduler keeps from one loop to the next, and what a step need not ask again."""

import copy
import pickle

import pytest
import test_restart
import torch
import torch.utils._pytree as pytree

import fastsample
from fastsample import grids, schedules, solvers
from fastsample.interop.diffusers import FsSchedulerOutput, runs
from fastsample.interop.diffusers import loop as loops
from fastsample.kernels import native
from fastsample.runtime import spares
from tests.oracle.pipelines import loop, start

diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.set_verbosity_error()
# diffusers' own
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
FsScheduler = fastsample.FsScheduler
recorder = test_restart.recorder
SOURCES = ["FlowMatchEulerDiscrete", "DPMSolverMultistep", "UniPCMultistep", "HeunDiscrete", "DDIM"]


def of(name, **config):
    return FsScheduler.from_config(getattr(diffusers, f"{name}Scheduler")(**config))


def model(x, t):
    return torch.tanh(0.7 * x) + 0.1


def counted(monkeypatch, owner, name):
    """Calls of a method of `owner` from here on."""
    calls, own = [], getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *a, **k: calls.append(name) or own(*a, **k))
    return calls


@pytest.mark.parametrize("name", SOURCES)
def test_only_the_first_loop_looks_closely(name, monkeypatch):
    """One loop is made and one run, and no step of a later loop goes through every check."""
    scheduler, x = of(name), start(2, 3, 8, 8)
    first = loop(scheduler, x, 6, model)
    close, made, asked = (
        counted(monkeypatch, *what)
        for what in ((loops.Loop, "_step"), (loops, "Run"), (runs.Runs, "_loop"))
    )
    assert all(torch.equal(loop(scheduler, x, 6, model), first) for _ in range(3))
    assert (len(close), len(made), len(asked)) == (0, 0, 0)
    half = loop(scheduler, x.bfloat16(), 6, model)
    assert torch.equal(loop(scheduler, x.bfloat16(), 6, model), half)
    assert len(close) == 2 * len(scheduler.timesteps) and len(made) == 1
    broken = start(2, 3, 8, 8)
    broken[1] = torch.nan
    for f, sample, sentence in (
        (x[:1], x, "model_output is .1, 3, 8, 8. on cpu for a sample of .2, 3, 8, 8."),
        (x, broken, "FsScheduler.step: sample holds NaN or Inf in sample 1"),
    ):
        scheduler.set_timesteps(6)
        with pytest.raises(ValueError, match=sentence):
            scheduler.step(f, scheduler.timesteps[0], sample)
        assert scheduler.step_index is None
        assert torch.equal(loop(scheduler, x, 6, model), first)
    scheduler.set_timesteps(6)
    scheduler.set_begin_index(2)
    if name == "DDIM":  # goes by the timestep alone, as its source
        scheduler.step(x, scheduler.timesteps[0], x)
        return
    with pytest.raises(ValueError, match="is out of order"):
        scheduler.step(x, scheduler.timesteps[0], x)


@pytest.mark.skipif(native.MISSING is not None, reason="needs the binary")
@pytest.mark.parametrize("transform", [torch.func.vmap, torch.func.functionalize])
def test_a_transform_is_refused_where_a_run_is_at_hand(transform):
    scheduler, x = of("FlowMatchEulerDiscrete"), start(2, 3, 8, 8)
    first = loop(scheduler, x, 6, model)
    scheduler.set_timesteps(6)
    with pytest.raises(RuntimeError, match="FsScheduler.step: called under torch.func"):
        transform(lambda z: scheduler.step(z, scheduler.timesteps[0], z).prev_sample)(x)
    assert scheduler.step_index is None
    assert torch.equal(loop(scheduler, x, 6, model), first)


@pytest.mark.parametrize("name", SOURCES)
def test_a_step_runs_no_operator_but_its_results_allocation(name, recorder, monkeypatch):
    """And none that reads a value: the launch is one that only notes that it was called."""
    monkeypatch.setenv("FASTSAMPLE_BACKEND", "recorder")
    monkeypatch.setattr(loops, "watched", lambda: False)
    scheduler, x = of(name), start(2, 3, 8, 8)
    loop(scheduler, x, 6, model)
    # and filled with NaN, by the tests themselves
    allocated = ["aten.empty_like.default", "aten.fill_.Scalar"]
    # those whose source hands out its prediction of the data: a copy, since the run forms the next
    copied = ["aten._to_copy.default"] * (name in ("DDIM", "HeunDiscrete"))
    scheduler.set_timesteps(6)
    recorder.clear()
    with test_restart.Operators() as seen:
        for n, t in enumerate(scheduler.timesteps.unbind(0), 1):
            seen.ran.clear()
            x = scheduler.step(x, t, x).prev_sample
            assert seen.ran == allocated + copied
            assert recorder[-1:] == [(n, 0)] and len(recorder) == n


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_loop_leaves_nothing_to_the_next(name, dtype):
    """After loops that were left half-way, that met a NaN, of other shapes and other lengths."""
    scheduler, x = of(name), start(2, 3, 8, 8, dtype=dtype)
    want = loop(of(name), x, 5, model)

    def left(steps, model=model):
        scheduler.set_timesteps(5)
        y = x
        for t in scheduler.timesteps[:steps]:
            y = scheduler.step(model(y, t), t, y).prev_sample

    for before in (
        lambda: left(3),
        lambda: pytest.raises(ValueError, left, 3, lambda x, t: x * torch.nan),
        lambda: loop(scheduler, start(1, 3, 4, 4, dtype=dtype), 5, model),
        lambda: loop(scheduler, x, 7, model),
        lambda: loop(scheduler, x.to(torch.float64), 5, model),
    ):
        before()
        assert torch.equal(loop(scheduler, x, 5, model), want)


@pytest.mark.parametrize("name", solvers.SOLVERS)
def test_every_solver_has_the_bits_of_its_run(name):
    """In a first loop, and in one on what it left; noise is drawn from one generator."""
    schedule, x = schedules.EDM(), start(2, 3, 4, 4)
    plan = solvers.SOLVERS[name](schedule, grids.karras(schedule, 5), prediction="x0")
    scheduler = FsScheduler.from_plan(plan)
    chance = torch.Generator().manual_seed(3)
    draws = (lambda row, id_: torch.randn(x.shape, generator=chance)) if plan.L else None
    run = fastsample.Run(plan, latent=x * plan.init_scale, start=1, noise_source=draws)
    while not run.done:
        run.step(model(run.model_input, run.t))
    for _ in range(2):
        chance.manual_seed(3)
        scheduler.set_timesteps(plan.nfe)
        y = x * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            asked = model(scheduler.scale_model_input(y, t), t)
            y = scheduler.step(asked, t, y, generator=chance).prev_sample
        assert torch.equal(y, run.x)


def test_what_is_kept_is_bounded():
    scheduler = of("UniPCMultistep")
    for n in range(1, 30):
        loop(scheduler, start(1, 1, n, 2), 2 + n % 20, model)
    kept = scheduler._runs
    assert 0 < len(scheduler._loops.spares._idle) <= spares.MOST
    assert 0 < len(kept._loops) <= runs.KEPT and 0 < len(kept._compiled) <= runs.KEPT


def test_timesteps_are_the_loops_own_and_steps_asked_for_are_whole():
    scheduler = of("DPMSolverMultistep")
    scheduler.set_timesteps(4)
    first = scheduler.timesteps
    told = first.clone()
    first.zero_()
    scheduler.set_timesteps(4)
    assert torch.equal(scheduler.timesteps, told) and first.sum() == 0
    scheduler.set_timesteps(1)
    for wrong in (4.0, True):
        with pytest.raises(ValueError, match=f"{wrong} steps; a whole number"):
            scheduler.set_timesteps(wrong)


def test_a_float_sample_is_the_state():
    """It is read and not written to; another tensor in its place, or an edit, is where the run goes
    on from; whatever dtype it comes in.
    """
    x, f = start(1, 4, 8, 8), start(1, 4, 8, 8, seed=1)

    def end(edit, at=2, compat=None):
        peer = diffusers.UniPCMultistepScheduler(use_karras_sigmas=True)
        scheduler = FsScheduler.from_config(peer, compat=compat)
        scheduler.set_timesteps(5)
        y = x
        for k, t in enumerate(scheduler.timesteps):
            given = edit(y) if k == at else y
            before = given.clone()
            y = scheduler.step(f, t, given).prev_sample
            assert torch.equal(given, before) and y.data_ptr() != given.data_ptr()
        return y

    plain = end(lambda y: y)
    assert torch.equal(end(torch.clone), plain) and torch.equal(end(lambda y: y.double()), plain)
    kept = end(lambda y: y, compat="diffusers")
    for same in (torch.clone, torch.Tensor.double):
        # through the output, where the class keeps an earlier x
        assert torch.allclose(end(same, compat="diffusers").float(), kept, rtol=1e-5, atol=1e-3)
    spread = end(lambda y: y.repeat_interleave(2, 3)[..., ::2])
    assert torch.equal(spread, plain)
    halved = end(lambda y: y.mul_(0.5))
    assert torch.equal(end(lambda y: 0.5 * y), halved) and not torch.equal(halved, plain)
    assert end(lambda y: y.bfloat16()).dtype == torch.bfloat16


def test_a_wrong_timestep_is_refused_after_right_ones():
    """Views of the scheduler's own timesteps are told by their place, all else by its value."""
    scheduler, x = of("FlowMatchEulerDiscrete"), start(1, 4)
    scheduler.set_timesteps(6)
    times = scheduler.timesteps
    scheduler.step(x, times[0], x)
    scheduler.step(x, times[1], x)
    for wrong, sentence in (
        (times[1], "is out of order"),
        (times[3], "is out of order"),
        (times[2:4], "one timestep for the whole batch"),
        (times[3].clone(), "is out of order"),
        (1234.0, "is out of order"),
    ):
        with pytest.raises(ValueError, match=sentence):
            scheduler.step(x, wrong, x)
    for right in (times[2], times[3:4], times[4].clone(), float(times[5])):
        scheduler.step(x, right, x)
    assert scheduler.step_index == 6


def test_what_does_not_fit_is_refused_after_steps_that_did():
    scheduler, x = of("DPMSolverMultistep"), start(2, 3, 4, 4)
    scheduler.set_timesteps(6)
    times = scheduler.timesteps
    for t in times[:2]:
        x = scheduler.step(0.1 * x, t, x).prev_sample
    for f, sample, error, sentence in (
        (x[:1], x, ValueError, "nothing is broadcast"),
        (x[:1], x[:1], ValueError, "other samples after select.index."),
        (x.double(), x, TypeError, "asked in torch.float32"),
        (x, [1.0], TypeError, "sample is list"),
    ):
        with pytest.raises(error, match=sentence):
            scheduler.step(f, times[2], sample)
    assert scheduler.step_index == 2
    whole, y = of("DPMSolverMultistep"), start(2, 3, 4, 4)
    whole.set_timesteps(6)
    for t in times:
        y = whole.step(0.1 * y, t, y).prev_sample
    for t in times[2:]:
        x = scheduler.step(0.1 * x, t, x).prev_sample
    assert torch.equal(x, y)


def test_copies_in_mid_run_go_their_own_ways():
    scheduler, x = of("UniPCMultistep"), start(1, 3, 4, 4)
    want = loop(of("UniPCMultistep"), x, 6, model)
    scheduler.set_timesteps(6)
    for k, t in enumerate(scheduler.timesteps):
        twin, y = copy.deepcopy(scheduler), x
        for later in twin.timesteps[k:]:
            y = twin.step(model(y, later), later, y).prev_sample
        assert torch.equal(y, want)
        x = scheduler.step(model(x, t), t, x).prev_sample
    assert torch.equal(x, want)


def test_samples_of_inference_mode_may_be_written_to_outside():
    scheduler, x = of("FlowMatchEulerDiscrete"), start(1, 3, 4, 4)
    want = loop(scheduler, x, 4, model)
    with torch.inference_mode():
        end = loop(scheduler, x, 4, model)
    assert torch.equal(end, want) and not end.is_inference()


def test_the_output_is_what_diffusers_would_make():
    x, x0 = start(1, 2), start(1, 2, seed=1)
    for given in ((x,), (x, x0), (x, None)):
        made, plain = FsSchedulerOutput(*given), FsSchedulerOutput.__new__(FsSchedulerOutput)
        for name, value in zip(
            ("prev_sample", "pred_original_sample"), (*given, None), strict=False
        ):
            object.__setattr__(plain, name, value)
        diffusers.utils.BaseOutput.__post_init__(plain)
        for other in (made, pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
            assert isinstance(other, diffusers.utils.BaseOutput) and list(other) == list(plain)
            pairs = zip(other.to_tuple(), plain.to_tuple(), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)
            assert (other.pred_original_sample is None) == (plain.pred_original_sample is None)
            assert torch.equal(other[0], other["prev_sample"])
        leaves, spec = pytree.tree_flatten(made)
        assert len(leaves) == len(made)
        assert type(pytree.tree_unflatten(leaves, spec)) is FsSchedulerOutput
    made.prev_sample = x0
    assert made["prev_sample"] is x0
