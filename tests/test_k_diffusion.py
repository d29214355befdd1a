"""k_sample against k-diffusion's own samplers in float64: samples, callbacks, noise, and plans
k-diffusion has no counterpart of.
"""

import importlib.util
import math
import threading

import numpy as np
import pytest
import torch

import fastsample
from fastsample import solvers
from fastsample.grids import from_sigmas, karras
from fastsample.interop import k_diffusion, k_sample
from fastsample.schedules import EDM, VP, DiscreteVP, Flow
from tests.cases import louder
from tests.oracle import peers

SCHEDULE = EDM(sigma_min=0.03, sigma_max=14.6)
SIGMAS = karras(SCHEDULE, 9)
EPS = np.finfo(np.float64).eps
CASES = [
    ("euler", {}, {}, True),
    ("heun", {}, {}, True),
    ("dpmpp_2m", {}, {}, True),
    ("euler_ancestral", {}, {}, False),
    ("euler_ancestral", {"eta": 0.5}, {"eta": 0.5}, False),
    ("dpmpp_2m_sde", {}, {}, False),
    ("dpmpp_2m_sde", {"eta": 0.4, "variant": "heun"}, {"eta": 0.4, "solver_type": "heun"}, False),
    ("heun", {"s_churn": 3.0, "s_noise": 1.01}, {"s_churn": 3.0, "s_noise": 1.01}, False),
]


def denoiser(x, sigma, gain=1.0):
    """A smooth x0 that depends on everything, in x's dtype."""
    s = sigma.double().view(-1, *[1] * (x.dim() - 1))
    y = (x.double() / torch.sqrt(1 + s**2)).flatten(1)
    weight = torch.sin(torch.arange(y.shape[1] ** 2, dtype=torch.float64)).view(y.shape[1], -1)
    mixed = torch.tanh(y @ weight / 4).view(x.shape)
    return (x / (1 + s**2) + s / torch.sqrt(1 + s**2) * gain * mixed).to(x.dtype)


def start(dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 4, 2, 2, generator=generator, dtype=torch.float64)
    return (x * SIGMAS[0]).to(dtype)


def noises():
    """The same draws for both, one after another, whatever they are asked with."""
    generator = torch.Generator().manual_seed(9)
    return lambda *_: torch.randn(2, 4, 2, 2, generator=generator, dtype=torch.float64)


ABSENT = importlib.util.find_spec("k_diffusion") is None
IDS = [f"{c[0]}{'-'.join(map(str, c[1].values()))}" for c in CASES]


@pytest.mark.skipif(ABSENT, reason="k-diffusion, the peer, is not installed")
@pytest.mark.parametrize(("name", "ours", "theirs", "still"), CASES, ids=IDS)
def test_samples_and_callbacks_are_the_peers(name, ours, theirs, still):
    """Equal within rounding: 64 ulps of the largest state, which is 40 operations a step with gains
    below 1.
    """
    code, seen, mine, asked = peers.k_diffusion(), [], [], []

    def model(x, sigma, gain):
        asked.append(float(sigma[0]))
        return denoiser(x, sigma, gain)

    given = {"extra_args": {"gain": 0.9}, "disable": True}
    peer = getattr(code, f"sample_{name}")
    own = {} if still or name == "heun" else {"noise_sampler": noises()}
    own |= {"callback": seen.append}
    draw = noises() if "s_churn" in ours else torch.zeros_like
    with peers._replaced(code, torch=peers._Instead(torch, randn_like=draw)):
        expected = peer(model, start(), torch.tensor(SIGMAS), **given, **theirs, **own)
    their_calls = asked.copy()
    asked.clear()
    plan = getattr(solvers, name)(SCHEDULE, SIGMAS, prediction="edm", **ours)
    own = {"noise_sampler": None if still else noises(), "callback": mine.append}
    found = k_sample(plan, model, start(), **given, **own)
    bound = 64 * EPS * SIGMAS[0]
    assert (found - expected).abs().max() <= bound
    assert np.allclose(asked, their_calls, rtol=8 * EPS, atol=0)
    assert len(mine) == len(seen) == len(SIGMAS) - 1
    for a, b in zip(mine, seen, strict=True):
        assert a.keys() == b.keys() and a["i"] == b["i"]
        assert all(
            np.abs(np.asarray(a[k]) - np.asarray(b[k])).max() <= bound
            for k in ("x", "sigma", "sigma_hat", "denoised")
        )


def test_any_plan_runs_on_a_denoiser():
    """Plans on VP and flow schedules, for eps and flow models, keep their own state; x in and out
    is k-diffusion's. One ODE, one answer.
    """
    levels = [12.0, 5.0, 2.0, 0.8, 0.3, 0.0]
    worlds = [
        (SCHEDULE, levels, "edm"),
        (DiscreteVP.scaled_linear(), levels, "eps"),
        (Flow(shift=3.0), [s / (1 + s) for s in levels], "flow"),
    ]
    for name in ("ddim", "dpmpp_2m", "unipc"):
        make, x = getattr(solvers, name), start() * 12 / SIGMAS[0]
        plans = [make(s, from_sigmas(s, grid), prediction=kind) for s, grid, kind in worlds]
        runs = [k_sample(plan, denoiser, x, disable=True) for plan in plans]
        # levels went through a table and back: 1e-14 each
        assert all((r - runs[0]).abs().max() <= 1e3 * EPS * 12 for r in runs[1:])


@pytest.mark.parametrize("schedule", [{"name": "Mine", "c": 2.0}, None])
def test_a_schedule_of_ones_own_needs_no_registry(schedule):
    """The rows hold all a run needs; what sigma was before churn is then not known, and is that at
    which the model is asked.
    """
    plan, told = solvers.dpmpp_2m(SCHEDULE, SIGMAS, prediction="edm"), ([], [])
    both = (plan.with_note(schedule=schedule), plan)
    ends = [
        k_sample(p, denoiser, start(), callback=to.append, disable=True)
        for p, to in zip(both, told, strict=True)
    ]
    assert torch.equal(*ends)
    own, usual = ([float(d["sigma"]) for d in states] for states in told)
    assert own == pytest.approx(usual, rel=8 * EPS)


def test_dtypes_noise_and_kept_tensors():
    """fp16 in, fp16 out, float32 state; noise from torch's own generator by default; what a
    callback keeps stays as it was.
    """
    plan = solvers.euler_ancestral(SCHEDULE, SIGMAS, prediction="edm")
    dtypes, kept = [], []

    def model(x, sigma):
        dtypes.append((x.dtype, sigma.dtype, tuple(sigma.shape)))
        return denoiser(x, sigma)

    def keep(state):
        kept.append((state["x"], state["x"].clone()))

    torch.manual_seed(4)
    half = k_sample(plan, model, start(torch.float16), callback=keep)
    assert half.dtype == torch.float16 and set(dtypes) == {(torch.float16, torch.float16, (2,))}
    assert all(torch.equal(a, b) for a, b in kept)
    torch.manual_seed(4)
    draw = lambda a, b: torch.randn(2, 4, 2, 2, dtype=torch.float16)
    again = k_sample(plan, denoiser, start(torch.float16), disable=True, noise_sampler=draw)
    assert torch.equal(half, again)
    levels = []
    draw = lambda a, b: levels.append((float(a), float(b))) or torch.zeros(2, 4, 2, 2)
    k_sample(plan, denoiser, start(), disable=True, noise_sampler=draw)
    assert np.allclose(levels, list(zip(SIGMAS[:-2], SIGMAS[1:-1], strict=True)), rtol=1e-6)


def test_a_callback_may_stop_the_run():
    class Stop(Exception):
        pass

    def stop(state):
        if state["i"] == 3:
            raise Stop

    plan = solvers.euler(SCHEDULE, SIGMAS, prediction="edm")
    with pytest.raises(Stop):
        k_sample(plan, denoiser, start(), callback=stop, disable=True)


def test_bad_input_is_refused():
    plan = solvers.euler(SCHEDULE, SIGMAS, prediction="edm")
    noisy = solvers.euler_ancestral(SCHEDULE, SIGMAS, prediction="edm")
    flow = Flow()
    whole = solvers.ddim(flow, from_sigmas(flow, [1.0, 0.5, 0.0]), prediction="flow")
    cases = [
        ((None, denoiser, start()), "plan is a NoneType"),
        ((plan, None, start()), "k_sample: model is a NoneType; a callable"),
        ((plan, denoiser, torch.tensor(80.0)), r"k_sample: x is torch.float32 \[\]"),
        ((plan, denoiser, "x"), "x is str"),
        ((plan, denoiser, start().long()), "x is torch.int64"),
        ((plan, denoiser, start() * torch.nan), "k_sample: x holds NaN or Inf"),
        ((plan, lambda x, s: x[:1], start()), "nothing is broadcast"),
        ((plan, lambda x, s: x.long(), start()), "the model returned torch.int64"),
        ((fastsample.guidance.guided(plan), denoiser, start()), "guidance is the model's"),
        ((whole, denoiser, start()), "alpha = 0"),
        (
            (noisy, denoiser, start(), None, None, True, lambda a, b: 0.0),
            "noise_sampler gave a float",
        ),
    ]
    for given, sentence in cases:
        with pytest.raises((ValueError, TypeError), match=sentence):
            k_sample(*given)


# -- one call after another ------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "heun", "euler_ancestral", "unipc"])
def test_a_call_goes_on_the_memory_of_the_last(name, dtype, monkeypatch):
    """No run is made anew, nothing is left behind: by other shapes, by a model that raised, by one
    that was itself sampled through. What a callback kept stays as it was.
    """
    schedule = VP() if name == "unipc" else SCHEDULE
    grid = from_sigmas(schedule, [SIGMAS[0], 5.0, 2.0, 0.8, 0.3, 0.0])
    plan = getattr(solvers, name)(schedule, grid, prediction="eps" if name == "unipc" else "edm")
    kept, made, x = [], [], start(dtype)
    own = k_diffusion.Run
    monkeypatch.setattr(k_diffusion, "Run", lambda *a, **k: made.append(1) or own(*a, **k))

    def call(model=denoiser, x=x):
        draw = noises()
        given = {"noise_sampler": lambda *_: draw()[:, :, : x.shape[2]], "callback": kept.append}
        return k_sample(plan, model, x, disable=True, **given)

    def broken(x, sigma):
        raise KeyError("stop")

    want, states = call(), [{k: v for k, v in state.items() if k != "i"} for state in kept]
    before = [{k: v.clone() for k, v in state.items()} for state in states]
    assert torch.equal(call(), want) and len(made) == 1
    with pytest.raises(KeyError):
        call(broken)
    call(x=start(dtype)[:, :, :1])
    inner = []
    outer = call(lambda x, sigma: inner.append(call()) or denoiser(x, sigma))
    assert torch.equal(outer, want) and all(torch.equal(end, want) for end in inner)
    for a, b in zip(states, before, strict=True):
        assert all(torch.equal(a[k], b[k]) for k in b)


def test_threads_share_a_plan():
    plan, ends = solvers.dpmpp_2m(SCHEDULE, SIGMAS, prediction="edm"), [None] * 6
    want = [k_sample(plan, denoiser, start(seed=s), disable=True) for s in range(6)]

    def work(s):
        for _ in range(4):
            ends[s] = k_sample(plan, denoiser, start(seed=s), disable=True)

    threads = [threading.Thread(target=work, args=(s,)) for s in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(ends, want, strict=True))


def test_a_model_leaves_its_input_alone_and_may_return_it():
    """x may be the state itself, sigma is every later call's too; what a callback is given of them
    is its own.
    """
    plan, kept = solvers.euler(SCHEDULE, SIGMAS, prediction="edm"), []
    for model in (lambda x, s: x.mul_(0.5), lambda x, s: x * s.mul_(0.5).view(-1, 1, 1, 1)):
        with pytest.raises(ValueError, match="k_sample: the model changed its input in place at"):
            k_sample(plan, model, start(), disable=True)
    keep = lambda state: kept.append((state["x"], state["x"].clone(), state["denoised"]))
    grown = start().requires_grad_()
    same = k_sample(plan, lambda x, s: x, grown, callback=keep, disable=True)
    assert not same.requires_grad
    assert torch.equal(same, k_sample(plan, lambda x, s: x.clone(), start(), disable=True))
    assert all(torch.equal(x, copy) and torch.equal(x, d) for x, copy, d in kept)


def test_a_state_that_is_no_longer_finite_is_said_at_the_end():
    plan = solvers.euler(SCHEDULE, SIGMAS, prediction="edm")
    model = lambda x, s: x / (x[:, :1] * 0.0 + torch.tensor([1.0, 0.0]).view(-1, 1, 1, 1))
    sentence = "k_sample: sample 1 became non-finite at row 1; the model returned NaN, Inf"
    with pytest.raises(FloatingPointError, match=sentence):
        k_sample(plan, model, start(), disable=True)
    unread = k_sample(plan, model, start(), disable=True, check=None)
    assert unread[0].isfinite().all() and not unread[1].isfinite().any()
    assert (
        not k_sample(plan, denoiser, start() * torch.nan, disable=True, check=None).isfinite().any()
    )
    k_sample(plan, denoiser, start() * 9, disable=True, check=None)
    with pytest.raises(ValueError, match="root mean square"):
        k_sample(plan, denoiser, start() * 9, disable=True)
    with pytest.raises(ValueError, match="check is 'never'; 'end' and None are accepted"):
        k_sample(plan, denoiser, start(), check="never")


# -- what x must be --------------------------------------------------------------------------------
LEVELS = [80.0, 5.0, 0.5, 0.0]


def x0(x, sigma):
    return x / (1 + sigma.view(-1, 1, 1, 1) ** 2)


def euler(levels, **given):
    return solvers.euler(EDM(sigma_max=80.0), levels, prediction="edm", **given)


def noise_of(n, rms=1.0, dtype=torch.float64):
    """n numbers of exactly this root mean square."""
    x = torch.randn(1, 1, 1, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (x / x.square().mean().sqrt() * rms).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("schedule", "kind", "top"),
    [(EDM(sigma_max=80.0), "edm", 80.0), (VP(), "eps", 100.0), (Flow(), "flow", 9.0)],
)
def test_noise_of_another_scale_is_refused(schedule, kind, top, dtype):
    """Between .97 s (1 - 4/sqrt(2n)) and 1.03 sqrt(s² + 1) (1 + 4/sqrt(2n)), s in k-diffusion's
    units; both numbers are named.
    """
    n, levels = 200, (top, 2.0, 0.5, 0.0)
    grid = from_sigmas(schedule, [s / (1 + s) for s in levels] if kind == "flow" else levels)
    plan = louder(solvers.euler(schedule, grid, prediction=kind))
    s, slack = plan.init_scale / plan.alpha[1], 4 / math.sqrt(2 * n)
    assert s == pytest.approx(1.3 * top, rel=1e-9)
    low, high = 0.97 * s * (1 - slack), 1.03 * math.sqrt(s * s + 1) * (1 + slack)
    near = 4 * torch.finfo(dtype).eps
    for rms in (s, low * (1 + near), high * (1 - near), math.hypot(s, 1)):
        assert torch.isfinite(k_sample(plan, x0, noise_of(n, rms, dtype), disable=True)).all()
    for rms in (1.0, low * (1 - near), high * (1 + near), 2 * s):
        called = []
        told = f"root mean square of [0-9.]+ where {s:.4g} is meant; .* = {s:.6g} is accepted"
        with pytest.raises(ValueError, match=told) as error:
            k_sample(plan, lambda *a, c=called: c.append(1), noise_of(n, rms, dtype), disable=True)
        named = float(str(error.value).split("square of ")[1].split()[0])
        assert named == pytest.approx(rms, rel=near + 1e-3) and not called


@pytest.mark.parametrize("n", [1, 2, 7, 10_000])
def test_the_bounds_are_wider_for_few_numbers(n):
    plan, high = euler(LEVELS), 1.03 * math.hypot(80, 1) * (1 + 4 / math.sqrt(2 * n))
    k_sample(plan, x0, noise_of(n, high * (1 - 1e-9)), disable=True)
    with pytest.raises(ValueError, match="where 80 is meant"):
        k_sample(plan, x0, noise_of(n, high * (1 + 1e-9)), disable=True)


def test_at_low_levels_data_may_be_eight_times_as_large():
    """But not the noise of another plan: that of sigma_max, or a unit normal as it is."""
    with pytest.raises(ValueError, match="where 4 is meant"):
        k_sample(euler([4.0, 1.0, 0.0]), x0, noise_of(10_000, 5.0), disable=True)
    quiet = euler([2.9, 1.0, 0.0])
    for rms in (2.9, math.hypot(2.9, 1.0), math.hypot(2.9, 8.0)):
        assert torch.isfinite(k_sample(quiet, x0, noise_of(10_000, rms), disable=True)).all()
    for rms in (1.0, 2.6, 9.2, 14.6, 152.0):
        with pytest.raises(ValueError, match=f"square of {rms:.4g} where 2.9 is meant"):
            k_sample(quiet, x0, noise_of(10_000, rms), disable=True)


@pytest.mark.parametrize("top", [5.0, 20.0, 63.0, 160.0, 2560.0])
def test_data_has_the_variance_that_the_model_was_made_for(top):
    """Coordinates in angstrom, sigma_data = 16: a second plan from `top` on."""
    schedule = EDM(sigma_max=2560.0, sigma_data=16.0)
    plan = solvers.euler(schedule, [top, top / 4, 0.0], prediction="edm")
    x = noise_of(10_000, math.hypot(top, 16.0))
    assert torch.isfinite(k_sample(plan, x0, x, disable=True)).all()
    with pytest.raises(ValueError, match=f"where {top:.4g} is meant"):
        k_sample(plan, x0, noise_of(10_000, 0.9 * top), disable=True)


def test_what_a_plan_that_draws_no_noise_has_anyway_is_taken():
    """eta = 0, and s_noise = 1 of any plan, as a front end says them to every sampler."""
    words = {"model": EDM(sigma_max=80.0), "grid": LEVELS, "prediction": "edm"}
    still, drawing = solvers.dpmpp_2m(**words), solvers.lcm(**words)
    x = noise_of(64, 80.0)
    end = k_sample(still, x0, x, disable=True)
    assert torch.equal(k_sample(still, x0, x, disable=True, eta=0.0, s_noise=1.0), end)
    words = {"disable": True, "seed": 3}
    end = k_sample(drawing, x0, x, **words)
    assert torch.equal(k_sample(drawing, x0, x, s_noise=1.0, **words), end)
    for plan, more in ((still, {"eta": 0.5}), (still, {"s_noise": 1.1}), (drawing, {"eta": 0.0})):
        with pytest.raises(ValueError, match="which has none"):
            k_sample(plan, x0, x, **words, **more)


def test_neither_images_nor_empty_batches_are_checked():
    image, usual = euler(LEVELS, start=0), euler(LEVELS)
    assert torch.isfinite(k_sample(image, x0, noise_of(10_000, 300.0), disable=True)).all()
    empty = torch.zeros(0, 1, 4, 4)
    assert k_sample(usual, x0, empty, disable=True).shape == empty.shape
    with pytest.raises(ValueError, match="NaN or Inf"):
        k_sample(usual, x0, noise_of(64, 80.0) * torch.nan, disable=True)
