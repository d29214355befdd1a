"""Run.restart: the bits of a new run from the same memory, with nothing allocated; what is refused
leaves the run where it was.
"""

import copy
import sys
import types

import pytest
import torch
from cases import same
from test_sampler import BACKENDS, by_hand, net, plan_of, unit
from torch.utils._python_dispatch import TorchDispatchMode

from fastsample import grids, schedules
from fastsample.guidance import guided
from fastsample.kernels import backend as backends
from fastsample.kernels import native
from fastsample.model import Model
from fastsample.runtime import cursor
from fastsample.runtime import run as runs
from fastsample.runtime.run import Run
from fastsample.solvers import SOLVERS

Z, OTHER = unit(seed=1), unit(seed=2)
EDM = Model(net, schedules.EDM(), prediction="edm")


ROADS = [*BACKENDS, *([] if native.MISSING else ["addresses"])]


def taken(road, patch):
    """The backend's name; natively also where C cannot look at torch's tensors."""
    if road == "addresses":
        patch.setattr(native, "EXCHANGE", False)
    return "reference" if road == "reference" else "native"


@pytest.fixture(params=ROADS)
def road(request, monkeypatch):
    return taken(request.param, monkeypatch)


def finished(run, model=net):
    while not run.done:
        run.step(model(run.model_input, run.t))
    return run.x


def edm(name="euler", n=4):
    return SOLVERS[name](EDM, grids.karras(EDM.schedule, n))


WHEN = {"at once": 0, "under way": 2, "at the end": 5}


@pytest.mark.pairs(name=SOLVERS.keys(), rows=WHEN, way=ROADS)
def test_a_restart_gives_the_bits_of_a_new_run(name, rows, way, monkeypatch):
    plan, road = plan_of(name), taken(way, monkeypatch)
    run, new = Run(plan, noise=Z, seed=1, backend=road), Run(plan, noise=OTHER, seed=7)
    for _ in range(rows):
        run.step(net(run.model_input, run.t))
    run.restart(OTHER, seed=7)
    assert (run.row, run.call, run.x0) == (new.row, new.call, None)
    while not run.done:
        assert same(run.x, new.x) and same(run.t, new.t) and same(run.model_input, new.model_input)
        for r in (run, new):
            r.step(net(r.model_input, r.t))
        assert same(run.x0, new.x0)
    assert same(run.x, new.x) and same(run.seeds, new.seeds) and not run.status().any()


@pytest.mark.parametrize("form", ["strided", "float64", "half", "channels_last", "expanded"])
def test_noise_of_any_form(form, road):
    """What a run would take; where it does not lie as the state does, it is copied in."""
    z = unit(3, 2, 4, 5, seed=2)
    run = Run(plan_of("dpmpp_2m_sde"), noise=unit(3, 2, 4, 5), backend=road)
    z = {
        "strided": torch.stack([z, z], -1)[..., 0],
        "float64": z.double(),
        "half": z.half(),
        "channels_last": z.to(memory_format=torch.channels_last),
        "expanded": z[:1].expand(3, -1, -1, -1),
    }[form]
    run.restart(z, seed=3)
    assert same(finished(run), by_hand(run.plan, z.float().contiguous(), seed=3))


def test_guidance_is_replaced_or_stays(road):
    plan = guided(plan_of())
    model = lambda x, t: [net(x, t, 0.2), net(x, t, -0.1)]
    whole = lambda z, s: by_hand(plan, z, model, guidance=s)
    run = Run(plan, noise=Z, guidance=2.0, backend=road)
    for z, scale, stands in (
        (OTHER, None, 2.0),
        (Z, 3.5, 3.5),
        (OTHER, torch.tensor([1.0, 2.0, 3.0]), [[1.0], [2.0], [3.0]]),
        (Z, None, [[1.0], [2.0], [3.0]]),
    ):
        run.restart(z, guidance=scale)
        stands = torch.tensor(stands) if isinstance(stands, list) else stands
        assert same(finished(run, model), whole(z, stands))


def test_what_the_caller_gave_is_not_written_to(road):
    """Seeds and scales of the form that a run keeps, and begun again with others."""
    seeds, scales = torch.tensor([3, 9]), torch.tensor([[2.0], [5.0]])
    plan = guided(edm("euler_ancestral"))
    run = Run(plan, noise=Z[:2], seed=seeds, guidance=scales, backend=road)
    run.restart(Z[:2], seed=4, guidance=1.0)
    assert seeds.tolist() == [3, 9] and scales.flatten().tolist() == [2.0, 5.0]
    assert run.seeds.tolist() == [4, 5]


@pytest.mark.parametrize("first", ["flow", "edm"])
def test_another_plan_of_the_layout(first, road):
    """Other times, another number of rows, scales of the model's input where there were none."""
    plans = [plan_of("euler", 5), edm(n=3), plan_of("euler", 2)]
    plans = plans if first == "flow" else plans[1::-1] + plans[2:]
    assert len({plan.layout for plan in plans}) == 1 and (edm().c != 1).any()
    run = Run(plans[0], noise=Z, backend=road)
    run.step(net(run.model_input, run.t))
    for plan in (*plans[1:], plans[0]):
        run.restart(OTHER, plan=plan)
        assert run.plan is plan and same(finished(run), by_hand(plan, OTHER))


def test_from_noise_to_a_latent_and_back(road):
    """What a run draws from its seeds is asked anew at every kind of start."""
    plan = SOLVERS["heun"](EDM, grids.karras(EDM.schedule, 6), s_churn=3.0, s_tmin=5.0)
    entry = max(plan.entries)
    assert not (plan.reads[entry:-1] >> plan.layout.noise(0) & 1).any(), "no noise from there on"
    run = Run(plan, latent=Z, start=entry, backend=road)
    for z, start, seed in ((Z, None, 3), (OTHER, entry, None), (OTHER, None, 4), (Z, None, 5)):
        words = {"noise": z} if start is None else {"latent": z, "start": start}
        run.restart(**words, seed=seed)
        new = Run(plan, **words, seed=seed)
        assert run.row == new.row and same(finished(run), finished(new))
        assert run.seeds is new.seeds is None or same(run.seeds, new.seeds)


def test_an_image_with_noise_beside_it(road):
    plan = plan_of(n=8, start=3)
    run = Run(plan, latent=unit(seed=5), noise=Z, backend=road)
    run.restart(OTHER, latent=unit(seed=6))
    assert same(finished(run), finished(Run(plan, latent=unit(seed=6), noise=OTHER)))


@pytest.mark.parametrize("begun", ["noise", "shape"])
def test_masks_stay_and_noise_0_is_the_noise_given(begun, road):
    plan = plan_of("euler", inpaint=True)
    assert (plan.ids == 0).any()
    mask = torch.rand(3, 1, 5, generator=torch.Generator().manual_seed(1))
    words = {"mask": mask, "known": unit(seed=5), "seed": 4}
    start = {"noise": Z} if begun == "noise" else {"shape": Z.shape}
    run = Run(plan, **start, **words, backend=road)
    for z in (OTHER, Z):
        run.restart(z, seed=4)
        assert same(finished(run), by_hand(plan, z, **words))
    with pytest.raises(ValueError, match="no row of this plan blends a known image"):
        run.restart(Z, plan=plan_of("euler_ancestral"))


def test_stage_noise_scale_and_draws_stay(road):
    plan = plan_of("euler_ancestral")
    for words in (
        {"stage": 2**32 - 1, "noise_scale": [0.5, 1.0, 0.0]},
        {"noise_source": lambda row, k: unit(seed=10 * row + k)},
    ):
        run = Run(plan, noise=Z, seed=1, **words, backend=road)
        run.restart(OTHER, seed=2)
        assert same(finished(run), by_hand(plan, OTHER, seed=2, **words))


@pytest.mark.parametrize("name", ["dpmpp_2m", "euler_ancestral"])
def test_seeds_are_drawn_or_forgotten_as_by_a_new_run(name, road):
    plan = plan_of(name)
    run = Run(plan, noise=Z, seed=5, backend=road)
    for seed in (None, 7, None, [4, -(2**63), 2**64 - 1], torch.tensor([9, 8, 7]), 2**64 - 3, None):
        torch.manual_seed(11)
        run.restart(OTHER, seed=seed)
        torch.manual_seed(11)
        new = Run(plan, noise=OTHER, seed=seed)
        twin = copy.deepcopy(run)
        assert same(finished(run), finished(new))
        for seeds in (run.seeds, twin.seeds):
            assert seeds is new.seeds is None or same(seeds, new.seeds)


def test_a_copy_is_restarted_by_itself(road):
    run = Run(plan_of("unipc"), noise=Z, seed=1, backend=road)
    run.step(net(run.model_input, run.t))
    twin = copy.deepcopy(run)
    twin.restart(OTHER)
    assert same(finished(twin), by_hand(run.plan, OTHER))
    assert same(finished(run), by_hand(run.plan, Z))


def test_a_copy_has_a_guidance_of_its_own(road):
    plan = guided(plan_of())
    run = Run(plan, noise=Z, guidance=2.0, backend=road)
    twin = copy.deepcopy(run)
    twin.restart(OTHER, guidance=5.0)
    net_of = lambda run: [net(run.model_input, run.t), net(-run.model_input, run.t)]
    for own, scale, z in ((run, 2.0, Z), (twin, 5.0, OTHER)):
        new = Run(plan, noise=z, guidance=scale)
        while not new.done:
            new.step(net_of(new))
            own.step(net_of(own))
        assert same(own.x, new.x)


def test_a_poisoned_run_begins_clean(road):
    run = Run(plan_of(), noise=Z, backend=road)
    run.step(net(run.model_input, run.t) * torch.nan)
    with pytest.raises(FloatingPointError, match="sample 0, 1, 2 became non-finite at row 1"):
        run.check()
    run.restart(OTHER)
    assert same(finished(run), by_hand(run.plan, OTHER))
    run.check()


@pytest.mark.parametrize(
    ("words", "error", "sentence"),
    [
        ({}, ValueError, "pass exactly one of noise"),
        ({"noise": Z[:2]}, ValueError, r"\[2, 2, 5\] on cpu was given in a run of \[3, 2, 5\]"),
        ({"noise": Z.numpy()}, TypeError, "noise is a ndarray"),
        ({"noise": Z.int()}, TypeError, "noise is torch.int32"),
        ({"noise": Z.to("meta")}, TypeError, "without numbers, on the device meta"),
        ({"noise": Z * torch.nan}, ValueError, "noise holds NaN"),
        ({"noise": Z.clone().requires_grad_()}, RuntimeError, "noise requires grad"),
        ({"noise": Z, "latent": Z}, ValueError, "pass exactly one of noise"),
        ({"latent": Z}, ValueError, "start"),
        ({"latent": Z, "start": 99}, ValueError, "start=99 is not an entry"),
        ({"noise": Z, "seed": "7"}, TypeError, "seed is a str"),
        ({"noise": Z, "seed": [1, 2]}, ValueError, "seed holds 2 values for a batch of 3"),
        ({"noise": Z, "seed": 2**64}, ValueError, "64-bit integers are accepted"),
        ({"noise": Z, "seed": 1.5}, TypeError, "seed is a float"),
        ({"noise": Z, "guidance": 2.0}, ValueError, "guidance is given and the plan has no"),
        ({"noise": Z, "plan": "plan"}, ValueError, "plan is 'plan' in a run of"),
        ({"noise": Z, "plan": plan_of("unipc")}, ValueError, "a plan of the same layout is"),
    ],
)
@pytest.mark.parametrize("name", ["euler", "euler_ancestral"])
def test_what_is_refused_leaves_the_run_where_it_was(name, words, error, sentence, road):
    run = Run(plan_of(name), noise=Z, seed=3, backend=road)
    for _ in range(2):
        run.step(net(run.model_input, run.t))
    before = [v.clone() for v in (run.x, run.x0, run.model_input, run.seeds)]
    for _ in range(2):
        with pytest.raises(error, match=sentence):
            run.restart(**words)
        assert run.row == 3
        for a, b in zip(before, (run.x, run.x0, run.model_input, run.seeds), strict=True):
            assert same(a, b)
    assert same(finished(run), by_hand(run.plan, Z, seed=3))


# -- nothing is allocated, nothing read ------------------------------------------------------------
class Operators(TorchDispatchMode):
    """Names of the torch operators that ran."""

    def __init__(self):
        super().__init__()
        self.ran = []

    def __torch_dispatch__(self, op, kinds, args=(), kwargs=None):
        self.ran.append(str(op))
        return op(*args, **(kwargs or {}))


@pytest.fixture
def recorder(monkeypatch):
    """A backend `recorder` that notes its launches and does no arithmetic: the list of them."""
    launches = []

    def bind(pool):
        def launch(row, f=(), noise=(), x_in=None, x_out=None):
            launches.append((row, len(noise)))

        def carry(row, f, x_in, x_out):
            launches.append((row, 0))
            return True

        launch.carry, launch.take = carry, lambda row, f: carry(row, f, None, None)
        launch.lies = lambda x: x.shape == pool.x.shape
        return launch

    stand_in = types.ModuleType("fastsample.kernels.recorder")
    stand_in.covers, stand_in.bind = lambda kernel, device, dtype: None, bind
    stand_in.fill = lambda out, seed, id_, stage=None: None
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    monkeypatch.setattr(backends, "BACKENDS", [*backends.BACKENDS, "recorder"])
    monkeypatch.setattr(backends, "_chosen", {})
    # a mode that counts is no transform that hides what runs by address
    for module in (cursor, runs):
        monkeypatch.setattr(module, "watched", lambda: False)
    return launches


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("branches", [1, 2])
def test_no_operator_runs_between_rows_or_in_a_restart(name, branches, recorder):
    plan = plan_of(name) if branches == 1 else guided(plan_of(name))
    words = {"guidance": 2.0, "copies": 2} if branches == 2 else {}
    run = Run(plan, noise=Z, seed=1, backend="recorder", **words)
    f = torch.zeros(branches * 3, 2, 5)
    recorder.clear()
    with Operators() as seen:
        for seed, z in ((2, Z), (3 if plan.L else None, OTHER)):
            run.restart(z, seed=seed)
            while not run.done:
                assert run.model_input is not None and run.t is not None
                run.step(f)
            run.check()
    assert seen.ran == []
    assert recorder == [(row, 0) for row in range(plan.rows - 1)] * 2


@pytest.mark.skipif(native.MISSING is not None, reason="needs the binary")
def test_a_restart_runs_no_operator_natively(monkeypatch):
    """The look at the noise included."""
    for module in (cursor, runs):
        monkeypatch.setattr(module, "watched", lambda: False)
    z = [unit(4, 1024, seed=k) for k in range(2)]
    run = Run(plan_of("unipc"), noise=z[0])
    f = torch.zeros_like(z[0])
    with Operators() as seen:
        run.restart(z[1], seed=5)
        run.step(f), run.step(f)
        run.restart(z[0])
        run.check()
    assert seen.ran == []
    with pytest.raises(ValueError, match="standard deviation 3"):
        run.restart(z[0] * 3 / z[0].std())
