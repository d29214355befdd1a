"""What calls ask of a device: one launch a step and no sync, host copy or allocation, for every
solver and every kind of call; and that the device which counts them (bench/counted.py) counts.
"""

import functools
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

from fastsample.kernels import backend, transforms
from fastsample.solvers import SOLVERS

# diffusers' own
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
ROOT = Path(__file__).resolve().parents[1]
ENGINE = "Engine, 64 mixed requests"
KINDS = [
    *("dpmpp_2m, guided", "dpmpp_2m, masked", "dpmpp_2m, channels_last"),
    *("dpmpp_2m_sde, channels_last", "ten earlier predictions", "dpmpp_2m, a Run", ENGINE),
]


@pytest.fixture(scope="module")
def calls():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        patch.syspath_prepend(ROOT / "bench")
        yield import_module("counted_calls")


@pytest.fixture(scope="module")
def ours(calls):
    """Our calls by their `check`, made once."""
    return functools.cache(calls.ours)


@pytest.fixture(scope="module")
def counted(calls):
    return import_module("counted")


@pytest.fixture(autouse=True)
def memory_as_it_comes(unwritten_memory_is_nan, monkeypatch):
    """Filling what nobody wrote would be counted."""
    monkeypatch.undo()


# -- ours ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("check", [None, "end"])
@pytest.mark.parametrize("name", [*SOLVERS, *KINDS])
def test_a_step_is_one_launch_and_a_call_waits_at_its_end_alone(calls, ours, counted, name, check):
    assert list(ours(check)) == [*SOLVERS, *KINDS]
    tally = calls.counted(ours(check)[name])
    asked = {replace(step, bytes=0) for step in tally.steps}
    usual = {counted.Counts(launches=1)}
    if name == ENGINE:  # a tick uploads its rows, and gathers those of the model, which stand apart
        usual = {counted.Counts(launches=2, host_copies=1)}
    assert asked == usual
    results = calls.REQUESTS if name == ENGINE else 1
    assert tally.whole.syncs == (0 if check is None else results)
    assert tally.start.syncs == 0


def test_the_most_a_call_asks_for(calls, counted):
    """Beside its steps: row 0 and the status cleared; at the end memory for the result."""
    tally = calls.counted(calls.ours(None)["dpmpp_2m"])
    assert tally.start == counted.Counts(launches=2, bytes=tally.start.bytes)
    assert tally.end == counted.Counts(launches=1, allocations=1, bytes=tally.end.bytes)
    assert len(tally.steps) == calls.STEPS - 1


def test_a_first_call_waits_for_its_table_alone(calls, counted):
    """Which runs on other streams share from then on: once for its numbers, once for its words. A
    scale of the noise is not looked at where it lies on the device.
    """
    plan, model = calls.plan_of("euler_ancestral", inpaint=True), lambda x, t: x * 0.5
    with counted.counting() as device:
        there = lambda v: device.put(v.clone())
        noise, waits = there(calls.noise()), []
        blend = {"mask": there(torch.ones(1, 1, 16, 16)), "known": there(calls.noise())}
        for words in ({}, {"noise_scale": 0.5}, {"noise_scale": there(torch.ones(2))}, blend):
            before = device.counts.syncs
            calls.fs.Sampler(plan, model)(noise=noise, check=None, **words)
            waits.append(device.counts.syncs - before)
    assert waits == [2, 0, 0, 0]


@pytest.mark.parametrize("solver", SOLVERS)
def test_bytes_are_what_a_step_must_move(calls, solver):
    """Those of bench/triad.py, worked out from the plan and not from its table."""
    plan, triad = calls.plan_of(solver), import_module("triad")
    run = calls.fs.Run(plan, noise=calls.noise(), preview=False)
    rows = [row for row in range(plan.rows) if plan.call[row] >= 0]
    moved = [import_module("counted").step_bytes(run._pool, row) for row in rows]
    assert sum(moved) / len(moved) == triad.step_bytes(run)


WRONG = {  # what a device is not waited for to look at -> the sentence at the end of the call
    "mask": ({"mask": torch.full((1, 1, 16, 16), 1.5)}, ValueError, r"mask spans 1.5..1.5; 0 "),
    "known": ({"known": torch.full((2, 4, 16, 16), torch.nan)}, ValueError, r"known holds NaN"),
    "noise": ({"noise": torch.full((2, 4, 16, 16), 9.0)}, ValueError, "a unit normal has 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_a_device_holds_is_refused_at_the_end(calls, counted, name):
    """In the words of the CPU, which looks before it begins; with check=None nobody looks."""
    given, kind, sentence = WRONG[name]
    plan = calls.plan_of("dpmpp_2m", inpaint=True)
    words = {"noise": calls.noise(), "mask": torch.ones(1, 1, 16, 16)}
    words |= {"known": torch.zeros(2, 4, 16, 16)} | given
    model = lambda x, t: x * 0.5
    with pytest.raises(kind, match=sentence):
        calls.fs.Run(plan, **words)
    with counted.counting() as device:
        there = {key: device.put(value) for key, value in words.items()}
        run = calls.fs.Run(plan, **there)
        before = device.counts.syncs
        with pytest.raises(kind, match=sentence):
            run.check()
        assert device.counts.syncs > before
        calls.fs.Sampler(plan, model)(**there, check=None)


def test_guidance_that_is_not_finite(calls, counted):
    """On the host before a call begins; on a device it ends in the status."""
    plan, words = calls.plan_of("dpmpp_2m"), {"cond": {}, "uncond": {}}
    sampler = calls.fs.Sampler(plan, lambda x, t: x * 0.5)
    scales = torch.tensor([1.0, torch.nan])
    with counted.counting() as device:
        noise = device.put(calls.noise())
        for given in (torch.nan, [torch.nan], scales):
            with pytest.raises(ValueError, match="guidance is not finite"):
                sampler(noise=noise, guidance=given, **words)
        with pytest.raises(FloatingPointError, match="sample 1 became non-finite at row 1"):
            sampler(noise=noise, guidance=device.put(scales), **words)


def test_a_status_is_read_at_once(calls, counted):
    """However many samples there are, and whatever else there is to look at."""
    plan = calls.plan_of("dpmpp_2m")
    with counted.counting() as device:
        for begin in ({"latent": device.put(calls.noise()), "start": 1}, {"shape": calls.SHAPE}):
            run = calls.fs.Run(plan, device="meta", **begin)
            before = device.counts.syncs
            run.check()
            assert run.faults() == []
            assert device.counts.syncs - before == 2


# -- the others' -----------------------------------------------------------------------------------
def test_peers_are_counted_by_the_same_device(calls):
    """Each end has the bits of the same loop on the CPU (calls.counted), and none asks for less."""
    ours = calls.counted(calls.ours(None)["unipc"])
    found = {name: calls.counted(call, 1) for name, call in calls.theirs().items()}
    assert len(found) == len(calls.SOURCES) + len(calls.SAMPLERS)
    for name, tally in found.items():
        assert min(step.launches for step in tally.steps) >= 3, name
        assert tally.whole.launches > ours.whole.launches and tally.whole.syncs > 0, name


def test_the_definition_is_counted_operator_by_operator(calls):
    (call,) = calls.defined().values()
    steps = calls.counted(call).steps
    assert all(step.launches > 20 and step.syncs == 0 for step in steps)


def test_the_doors_step_in_one_launch(calls):
    for name, call in calls.doors().items():
        tally = calls.counted(call)
        for step in tally.steps[1:]:  # before its first step a scheduler knows no shape
            assert step.launches == 1 and step.syncs == step.host_copies == 0, name
            assert step.allocations == name.startswith("FsScheduler"), name  # it returns a tensor


# -- the device itself -----------------------------------------------------------------------------
X = torch.arange(6.0).view(2, 3)
ASKED = {  # what is done with x [2, 3] on the device -> launches, syncs, host copies, allocations
    "an operator": (lambda x: x + 1, (1, 0, 0, 1)),
    "two operators": (lambda x: x * 2 - x, (2, 0, 0, 2)),
    "in place": (lambda x: x.mul_(2), (1, 0, 0, 0)),
    "a view": (lambda x: x.t()[1:, None].expand(-1, 4, -1), (0, 0, 0, 0)),
    "memory": (lambda x: torch.empty_like(x), (0, 0, 0, 1)),
    "zeros": (lambda x: torch.zeros(3, device=x.device), (1, 0, 0, 1)),
    "numbers": (lambda x: torch.tensor([1.0, 2.0], device=x.device), (0, 1, 1, 1)),
    "numbers, not waited for": (
        lambda x: torch.tensor([1.0]).to(x.device, non_blocking=True),
        (0, 0, 1, 1),
    ),
    "to the host": (lambda x: x.cpu(), (0, 1, 1, 0)),
    "item": (lambda x: x[1, 2].item(), (0, 1, 1, 0)),
    "truth": (lambda x: bool(x.any()), (1, 1, 1, 1)),
    "tolist": (lambda x: x.tolist(), (0, 1, 1, 0)),
    "nonzero": (lambda x: x.nonzero(), (1, 1, 1, 1)),
    "a mask as index": (lambda x: x[x > 2], (2, 1, 1, 2)),
    "equal": (lambda x: torch.equal(x, x), (1, 1, 1, 0)),
    "another dtype": (lambda x: x.double(), (1, 0, 0, 1)),
    "the same dtype": (lambda x: x.float(), (0, 0, 0, 0)),
    "nothing": (lambda x: x[:0] + 1, (0, 0, 0, 1)),
    "on the host": (lambda x: X + 1, (0, 0, 0, 0)),
    "a number of the host": (lambda x: x * torch.tensor(2.0), (1, 0, 0, 1)),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", ASKED)
def test_what_is_asked_is_counted(counted, name, inference):
    work, asked = ASKED[name]
    with torch.inference_mode(inference), counted.counting() as device:
        x = device.put(X)
        before = device.counts
        found = work(x)
        counts = device.counts - before
        found = device.see(found) if isinstance(found, torch.Tensor) else found
    assert (counts.launches, counts.syncs, counts.host_copies, counts.allocations) == asked
    wanted = work(X.clone())
    if isinstance(wanted, torch.Tensor) and name != "memory":
        assert torch.equal(found, wanted) and found.stride() == wanted.stride()
    elif name != "memory":
        assert found == wanted


def test_bytes_of_operators(counted):
    """Each operand once, however often it is repeated; what is overwritten is not read."""
    with counted.counting() as device:
        x, y = device.put(X), device.put(X[:1])
        for work, moved in (
            (lambda: x + x, 3 * 24),
            (lambda: x.sum(), 24 + 4),
            (lambda: x[:1].expand(2, 3).contiguous(), 12 + 24),
            (lambda: x.fill_(0.5), 24),
            (lambda: x.copy_(y), 12 + 24),
            (lambda: x.add_(1), 2 * 24),
        ):
            before = device.counts
            work()
            assert (device.counts - before).bytes == moved


def test_host_and_device_do_not_mix(counted):
    with counted.counting() as device:
        x = device.put(X)
        with pytest.raises(RuntimeError, match="tensors on the host and on the device"):
            x + X


def test_nothing_is_left_of_it(counted):
    before = list(backend.BACKENDS), dict(backend._chosen), transforms.modes
    with counted.counting():
        assert backend.select("step", "meta", torch.float32).name == counted.NAME
        assert backend.select("moments", "meta", torch.float32).name == "reference"
        assert backend.select("step", "cpu", torch.float32).name != counted.NAME
        assert transforms.active() is None and not transforms.watched()
    assert before[0] == backend.BACKENDS and before[2] is transforms.modes
    assert {k: v for k, v in backend._chosen.items() if k[1] == "meta"} == {
        k: v for k, v in before[1].items() if k[1] == "meta"
    }
    assert backend.select("step", "meta", torch.float32).name == "reference"
