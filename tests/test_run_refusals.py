"""Run: what does not fit is refused with one sentence before any kernel runs, and changes
nothing."""

import contextlib
import math

import numpy as np
import pytest
import stand_in
import torch
from cases import same
from test_run import BACKENDS, finish, net, plan_of, unit

from fastsample.guidance import guided
from fastsample.runtime.modes import MODES
from fastsample.runtime.run import Run
from fastsample.runtime.sampler import Sampler

GOOD = {"noise": unit(1, 32, 32)}


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"noise": None}, ValueError, "pass exactly one of"),
        ({"latent": unit()}, ValueError, "pass exactly one of"),
        ({"noise": np.zeros(3)}, TypeError, "noise is a ndarray"),
        ({"noise": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "noise is torch.int64"),
        (
            {"noise": torch.tensor([[1.0, math.nan], [0, 0]])},
            ValueError,
            "noise holds NaN or Inf in sample 0",
        ),
        (
            {"noise": torch.tensor([[1.0, 0], [math.inf, 0]])},
            ValueError,
            "noise holds NaN or Inf in sample 1",
        ),
        (
            {"noise": unit(1, 32, 32) * 14.6},
            ValueError,
            "noise has standard deviation .*already scaled by sigma\\? pass latent=",
        ),
        ({"noise": unit(1, 32, 32) * 0.7}, ValueError, "noise has standard deviation"),
        ({"noise": unit().requires_grad_()}, RuntimeError, "differentiable=True"),
        ({"noise": unit(), "device": "meta"}, ValueError, "noise is on cpu and device=meta"),
        ({"noise": None, "shape": (2, -1)}, ValueError, "shape is"),
        ({"noise": None, "shape": 5}, ValueError, "shape is 5; a batch size"),
        ({"noise": None, "shape": "ab"}, ValueError, "shape is 'ab'; a batch size"),
        ({"noise": None, "shape": (2.5, 3)}, ValueError, r"shape is \(2.5, 3\); a batch size"),
        (
            {"noise": None, "shape": (2, 3), "device": "cuda:99"},
            ValueError,
            "device='cuda:99' cannot be used .*'cpu'",
        ),
        (
            {"noise": None, "shape": (2, 3), "device": "bogus"},
            ValueError,
            "device='bogus' cannot be used .*'cpu'",
        ),
        ({"device": "bogus"}, ValueError, "device='bogus' cannot be used .*'cpu'"),
        (
            {"noise": None, "latent": unit(), "start": 3},
            ValueError,
            r"start=3 is not an entry .*entries for a latent are \[1, 2, 5\]; .*start=.*remake",
        ),
        ({"noise": None, "latent": unit(), "start": 0}, ValueError, "start=0 is not an entry"),
        ({"noise": None, "latent": unit(), "start": 99}, ValueError, "start=99 is not an entry"),
        ({"noise": None, "latent": unit(), "start": 1.0}, TypeError, "start is 1.0; a row number"),
        (
            {"noise": None, "latent": unit(), "start": True},
            TypeError,
            "start is True; a row number",
        ),
        (
            {"noise": None, "latent": unit(), "start": torch.tensor(True)},
            TypeError,
            r"start is tensor\(True\); a row number",
        ),
        (
            {"noise": None, "latent": unit(), "start": np.float64(1)},
            TypeError,
            "start is .*1.0.*; a row number",
        ),
        ({"start": False}, TypeError, "start is False; a row number"),
        ({"start": 2}, ValueError, "start=2 needs the state at that row"),
        ({"seed": [1, 2]}, ValueError, "seed holds 2 values for a batch of 1"),
        ({"seed": 2**64}, ValueError, "seed spans"),
        ({"seed": 1.5}, TypeError, "seed is a float"),
        ({"seed": True}, TypeError, "seed is a bool"),
        ({"seed": [True]}, TypeError, "seed holds True for sample 0; an int"),
        ({"seed": np.array([1.5])}, TypeError, "seed holds .*1.5.* for sample 0; an int"),
        ({"seed": torch.zeros(1)}, ValueError, "seed is torch.float32"),
        ({"guidance": 3.0}, ValueError, "the plan has no guidance scale; .*guided"),
        ({"noise_scale": [1.0, 2.0]}, ValueError, "noise_scale has shape"),
        ({"noise_scale": math.nan}, ValueError, "noise_scale is not finite"),
        ({"noise_scale": True}, TypeError, "noise_scale is True; a number or a tensor is accepted"),
        ({"noise_scale": torch.tensor([True])}, TypeError, r"noise_scale is tensor.\[True\]"),
        ({"noise_scale": np.array([False])}, TypeError, r"noise_scale is array.\[False\]"),
        (
            {"noise_scale": torch.ones(1, requires_grad=True)},
            RuntimeError,
            "noise_scale requires grad",
        ),
        (
            {"mask": torch.ones(1, 32, 32)},
            ValueError,
            "known is given without|mask is given without",
        ),
        (
            {"mask": torch.ones(1, 32, 32), "known": unit(1, 32, 32)},
            ValueError,
            "no row of this plan blends .*inpaint=True",
        ),
        ({"state_dtype": torch.bfloat16}, TypeError, "state_dtype torch.bfloat16"),
        ({"backend": "fortran"}, ValueError, "'fortran' .* is unknown"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, sentence):
    with pytest.raises(error, match=sentence):
        Run(plan_of("dpmpp_2m"), **{**GOOD, **change})


def test_whole_numbers_of_numpy_are_taken():
    plan = plan_of("dpmpp_2m_sde", 3)
    want = finish(Run(plan, shape=(2, 5), seed=[3, 4])).x
    for seed in (np.int64(3), np.arange(3, 5), list(np.arange(3, 5)), torch.arange(3, 5)):
        assert same(finish(Run(plan, shape=np.array([2, 5]), seed=seed)).x, want)
    run = Run(plan, noise=unit(), seed=3)
    assert same(finish(Run(plan, latent=run.x, start=np.int32(1), seed=3)).x, finish(run).x)


def captured(plan, **call):
    with pytest.MonkeyPatch.context() as patch:
        stand_in.install(patch)
        return Sampler(plan, net, "graph", capture="now")(**call)


ROADS = {
    "Run": lambda plan, **call: finish(Run(plan, **call)).x,
    **{mode: lambda plan, mode=mode, **call: Sampler(plan, net, mode)(**call) for mode in MODES},
    "graph": captured,
    "differentiable": lambda plan, **call: Sampler(plan, net, differentiable=True)(**call),
}


@pytest.mark.parametrize("road", ROADS)
def test_a_latent_is_a_state_or_an_image_and_the_call_says_which(road):
    """A plan for noise takes a state at the row that start= names; the image belongs to a plan made
    with start=.
    """
    run, image = ROADS[road], unit(seed=5)
    either = (
        r"to resume, pass start= \(one of \[1, 2, 5\]\) .*row 1: 0 x0 \+ 1 eps; "
        r".*plan.init_scale = 1 times itself\); .*begin from an image, .*plan.remake\(start="
    )
    for plan in (plan_of("dpmpp_2m"), plan_of("dpmpp_2m", inpaint=True)):
        with pytest.raises(
            ValueError, match=f"latent= is given without start= .*made for noise; {either}"
        ):
            run(plan, latent=image)
    made = plan_of("dpmpp_2m", 8, start=3)
    with pytest.raises(
        ValueError,
        match="noise= stands beside the state at row 1, and no row from there on reads it",
    ):
        run(made, latent=image, noise=unit(), start=1)
    if road in ("Run", "eager", "differentiable"):  # compiled in test_compile
        whole = Run(made, latent=image, noise=unit())
        state = whole.x.clone()
        assert same(run(made, latent=state, start=1), finish(whole).x)
        assert same(run(made, latent=image, noise=unit(), start=0), whole.x), (
            "row 0 takes the image, said or not"
        )
        assert same(
            run(plan_of("dpmpp_2m"), latent=unit(), start=torch.tensor(1)),
            run(plan_of("dpmpp_2m"), noise=unit()),
        )


def test_noise_stands_beside_a_state_where_a_later_row_reads_it():
    plan, image, z = plan_of("dpmpp_2m", 8, start=3, inpaint=True), unit(seed=5), unit()
    mask = {"mask": torch.full((1, 1, 1), 0.5), "known": unit(seed=6)}
    run = Run(plan, latent=image, noise=z, **mask)
    state = run.x.clone()
    assert same(finish(Run(plan, latent=state, noise=z, start=1, **mask)).x, finish(run).x)
    with pytest.raises(ValueError, match="noise= stands beside the state at row 1"):
        Run(plan, latent=state, noise=z, start=1)


def test_values_that_are_not_finite_are_laid_to_whoever_gave_them():
    bad = unit().clone()
    bad[1, 0, 0] = math.nan
    run = Run(plan_of("euler_ancestral"), noise=unit())
    with pytest.raises(ValueError, match="Run: x holds NaN or Inf in sample 1"):
        run.x = bad
    assert same(run.x, Run(run.plan, noise=unit()).x)
    for source in ([bad] * 5, lambda row, k: bad):
        with pytest.raises(ValueError, match="Run: noise_source holds NaN or Inf in sample 1"):
            finish(Run(plan_of("euler_ancestral", 6), noise=unit(), noise_source=source))


def test_masks_that_do_not_fit_are_refused():
    plan, z, known = plan_of("dpmpp_2m", inpaint=True), unit(), unit(seed=1)
    for mask, image, sentence in (
        (torch.full((3, 2, 5), 1.5), known, "mask spans 1.5"),
        (torch.full((3, 2, 5), math.nan), known, "mask spans nan"),
        (torch.ones(3, 2, 4), known, "mask has shape"),
        (torch.ones(5), known, "mask has shape"),
        (torch.ones(3, 2, 5), known[:2], "known is"),
        (torch.ones(3, 2, 5), known * math.inf, "known holds NaN or Inf"),
    ):
        with pytest.raises(ValueError, match=f"Run: {sentence}"):
            Run(plan, noise=z, mask=mask, known=image)
    with pytest.raises(ValueError, match="begins from an image; pass latent="):
        Run(plan_of("dpmpp_2m", start=2), noise=z)
    with pytest.raises(ValueError, match="guidance is missing"):
        Run(guided(plan), noise=z)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("f", "error", "sentence"),
    [
        (torch.zeros(1, 2, 5), ValueError, r"returned \[1, 2, 5\] for a sample of \[3, 2, 5\]"),
        (torch.zeros(3, 1, 5), ValueError, "nothing is broadcast"),
        (torch.zeros(3, 10), ValueError, "nothing is broadcast"),
        (
            torch.zeros(3, 2, 5, dtype=torch.float64),
            TypeError,
            "returned torch.float64, asked in torch.float32; .*model_dtype=torch.float64",
        ),
        (torch.zeros(3, 2, 5, dtype=torch.int64), TypeError, "returned torch.int64"),
        (torch.zeros(3, 2, 5, device="meta"), ValueError, "on meta"),
        (
            torch.zeros(3, 2, 5).requires_grad_(),
            RuntimeError,
            "requires grad.*no_grad.*differentiable=True",
        ),
        (torch.zeros(3, 2, 5).to_sparse(), (TypeError, ValueError), "sparse"),
        (np.zeros((3, 2, 5)), TypeError, "returned a ndarray"),
        (None, TypeError, "returned a NoneType"),
        ([torch.zeros(3, 2, 5)] * 2, TypeError, "returned a list"),
    ],
)
def test_outputs_that_do_not_fit_are_refused_and_change_nothing(f, error, sentence, backend):
    run = Run(plan_of("dpmpp_2m"), noise=unit(), backend=backend)
    before = run.x.clone()
    with pytest.raises(error, match=sentence):
        run.step(f)
    assert run.row == 1 and torch.equal(run.x, before)
    assert same(finish(run).x, finish(Run(plan_of("dpmpp_2m"), noise=unit(), backend=backend)).x)


def test_steps_past_the_end_are_refused():
    run = finish(Run(plan_of("dpmpp_2m"), noise=unit()))
    f = torch.zeros(3, 2, 5)
    for call in (run.step, run.mean):
        with pytest.raises(IndexError, match="Run.(step|mean): "):
            call(f)
    assert run.call == -1


def test_where_values_wait_for_a_device_they_are_judged_at_the_end():
    """The same sentences from one read: no noise is looked at before, whatever it holds."""
    plan, z = plan_of(), unit(2, 3, 32, 32)
    run = Run(plan, noise=z)
    run._here, run._words = False, None  # as on a device
    for noise, model, error, sentence in (
        (z * 80, net, ValueError, "noise has standard deviation 79"),
        (torch.full_like(z, torch.nan), net, ValueError, "noise holds NaN or Inf in sample 0, 1"),
        (z, lambda x, t: x / 0, FloatingPointError, "sample 0, 1 became non-finite at row 1;"),
        (z, net, None, ""),
    ):
        run.restart(noise)
        while not run.done:
            run.step(model(run.model_input, run.t))
        with pytest.raises(error, match=sentence) if error else contextlib.nullcontext():
            run.check()
