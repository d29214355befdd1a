"""No seed given: a call draws one from torch's generator where its run draws noise of its own, and
nothing where it does not.
"""

import copy

import numpy as np
import pytest
import torch
from cases import same
from test_run import EDM, finish, net, plan_of, tell, unit

import fastsample as fs
from fastsample import metrics
from fastsample.interop import k_sample
from fastsample.interop.diffusers import FsScheduler
from fastsample.models.analytic import GaussianMixture
from fastsample.optimize import oss
from fastsample.runtime.run import Run
from fastsample.runtime.sampler import Sampler
from fastsample.trajectories import record

# x0 of data N(0, 1), told sigma
GAUSSIAN = fs.Model(lambda x, t: x / (1 + tell(t, x) ** 2), fs.schedules.EDM(), "x0", time=1)
DRAWING = {
    "euler_ancestral": {},
    "ddim": {"eta": 1.0},
    "dpmpp_2m_sde": {},
    "lcm": {},
    "heun": {"s_churn": 3.0},
}


@pytest.fixture(autouse=True)
def one_start():
    torch.manual_seed(0)


@pytest.fixture
def roads(monkeypatch):
    """Every way through a plan; the loop that would be compiled runs as it is, since seeds are
    settled before it.
    """
    monkeypatch.setattr(torch, "compile", lambda loop, **options: loop)

    def sampled(**how):
        return lambda plan, model=net, **call: Sampler(plan, model, **how)(**call)

    return {
        "Run": lambda plan, model=net, **call: finish(Run(plan, **call), model).x,
        "eager": sampled(),
        "compile-loop": sampled(mode="compile-loop"),
        "differentiable": sampled(differentiable=True),
    }


ROADS = ("Run", "eager", "compile-loop", "differentiable")


def gaussian_plan(name, **options):
    return fs.solvers.SOLVERS[name](GAUSSIAN, [10.0, 2.0, 0.7, 0.3, 0.0], **options)


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


# -- right values ----------------------------------------------------------------------------------
def test_single_samples_spread_as_the_chain_does():
    """x' = (down/sigma) x + (1 - down/sigma) x/(1 + sigma^2) + up n, from 10 n: the variance of
    euler_ancestral's end, by hand.
    """
    levels, variance = [*np.geomspace(10.0, 0.1, 8), 0.0], 100.0
    for high, low in zip(levels[:-1], levels[1:], strict=True):
        up = low * (high**2 - low**2) ** 0.5 / high
        down = (low**2 - up**2) ** 0.5
        variance = (down / high + (1 - down / high) / (1 + high**2)) ** 2 * variance + up**2
    assert abs(variance**0.5 - 0.7440) < 0.0005
    sample = Sampler(fs.solvers.euler_ancestral(GAUSSIAN, levels), GAUSSIAN)
    got = torch.cat([sample(noise=torch.randn(1, 1)) for _ in range(400)])
    assert abs(float(got.std()) - variance**0.5) < 4 * variance**0.5 / 800**0.5


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("name", DRAWING)
def test_two_calls_on_fresh_noise_are_uncorrelated(roads, name, road):
    """4,096 independent numbers: |r| stays below 5/64 but once in two million."""
    plan = gaussian_plan(name, **DRAWING[name])
    a, b = (roads[road](plan, GAUSSIAN, noise=torch.randn(2, 2048)) for _ in range(2))
    assert abs(correlation(a, b)) < 5 / 64
    a, b = (roads[road](plan, GAUSSIAN, noise=torch.randn(2, 2048), seed=0) for _ in range(2))
    assert correlation(a, b) > 0.5, "the bound can be missed"


# -- what draws and what does not ------------------------------------------------------------------
IMAGE, MASK = unit(seed=5), {"mask": torch.full((1, 1, 1), 0.5), "known": unit(seed=6)}
Z, SHAPE, LATENT = {"noise": unit()}, {"shape": (3, 2, 5)}, {"latent": IMAGE}
OWN_DRAWS = {"noise_source": lambda row, k: unit(seed=row)}
OWN_TENSORS = {"noise_source": [unit(seed=k) for k in range(4)]}
PLAIN, ANCESTRAL, CHURN = plan_of("dpmpp_2m"), plan_of("euler_ancestral"), {"s_churn": 2.0}
FROM_IMAGE, INPAINT = plan_of("dpmpp_2m", 8, start=3), plan_of("dpmpp_2m", inpaint=True)
CASES = {
    "shape": (PLAIN, SHAPE, True),
    "shape, scale 0": (ANCESTRAL, SHAPE | {"noise_scale": 0}, True),
    "shape, own draws": (ANCESTRAL, SHAPE | OWN_DRAWS, True),
    "noise": (PLAIN, Z, False),
    "eta 0": (plan_of("ddim"), Z, False),
    "no churn": (plan_of("heun", 4, EDM), Z, False),
    # its only row ends at the data and adds no noise
    "one step": (plan_of("euler_ancestral", 1), Z, False),
    "sde": (plan_of("dpmpp_2m_sde"), Z, True),
    "churn": (plan_of("heun", 4, EDM, **CHURN), Z, True),
    "churn in row 0 alone": (plan_of("heun", 1, EDM, **CHURN), Z, True),
    "entered after it": (plan_of("heun", 1, EDM, **CHURN), LATENT | {"start": 1}, False),
    "entered": (ANCESTRAL, LATENT | {"start": 2}, True),
    "entered at the last row": (ANCESTRAL, LATENT | {"start": 5}, False),
    "image": (FROM_IMAGE, LATENT, True),
    "image and noise": (FROM_IMAGE, LATENT | Z, False),
    "image and noise, sde": (plan_of("dpmpp_2m_sde", 8, start=3), LATENT | Z, True),
    "image, its draw": (FROM_IMAGE, LATENT | {"noise_source": [unit()]}, False),
    "image, entered": (FROM_IMAGE, LATENT | {"start": 1}, False),
    "image, scale 0": (FROM_IMAGE, LATENT | {"noise_scale": 0.0}, False),
    # the known image is noised with the noise given
    "masked": (INPAINT, Z | MASK, False),
    "masked, entered": (INPAINT, LATENT | {"start": 1} | MASK, True),
    "unmasked, entered": (INPAINT, LATENT | {"start": 1}, False),
    "scale 0": (ANCESTRAL, Z | {"noise_scale": 0}, False),
    "scales 0": (ANCESTRAL, Z | {"noise_scale": torch.zeros(3)}, False),
    "a scale": (ANCESTRAL, Z | {"noise_scale": torch.tensor([0.0, 0.5, 0.0])}, True),
    "own draws": (ANCESTRAL, Z | OWN_DRAWS, False),
    "own tensors": (ANCESTRAL, Z | OWN_TENSORS, False),
}


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("case", CASES)
def test_a_seed_is_drawn_where_noise_is_and_nowhere_else(roads, case, road):
    plan, call, needed = CASES[case]
    call = {k: torch.tensor(v) if isinstance(v, float) else v for k, v in call.items()}
    state = torch.random.get_rng_state()
    first = roads[road](plan, **call)
    assert torch.equal(torch.random.get_rng_state(), state) != needed
    assert same(roads[road](plan, **call), first) != needed
    torch.random.set_rng_state(state)
    assert same(roads[road](plan, **call), first), "torch's generator governs it"
    torch.random.set_rng_state(state)
    run = Run(plan, **call)
    assert (run.seeds is not None) == needed
    given = 9 if run.seeds is None else int(run.seeds[0])
    state = torch.random.get_rng_state()
    assert same(roads[road](plan, **call, seed=given), first), "the seed it says is the one it took"
    assert torch.equal(torch.random.get_rng_state(), state), "a seed that is given draws none"
    assert Run(plan, **call, seed=9).seeds.tolist() == [9, 10, 11]


def test_one_int64_a_call_and_sample_b_takes_s_plus_b():
    plan = plan_of("euler_ancestral")
    for seed in range(4):
        torch.manual_seed(seed)
        run = Run(plan, shape=(3, 2, 5))
        after = torch.random.get_rng_state()
        torch.manual_seed(seed)
        s = int(torch.randint(-(2**63), 2**63 - 1, ()))
        assert run.seeds.tolist() == [s, s + 1, s + 2]
        assert torch.equal(after, torch.random.get_rng_state())
    end = finish(run).x
    assert same(finish(Run(plan, shape=(1, 2, 5), seed=s + 2)).x, end[2:])
    assert same(finish(Run(plan, shape=(3, 2, 5), seed=run.seeds)).x, end)


def test_seeds_wrap_at_the_end_of_64_bits(monkeypatch):
    monkeypatch.setattr(fs.runtime.sources, "drawn_seed", lambda: 2**63 - 2)
    run = Run(plan_of("euler_ancestral"), shape=(4, 2))
    assert run.seeds.tolist() == [2**63 - 2, 2**63 - 1, -(2**63), -(2**63) + 1]


def test_a_copy_draws_what_the_run_would_have():
    run = Run(plan_of("euler_ancestral"), noise=unit())
    run.step(net(run.model_input, run.t))
    state, twin = torch.random.get_rng_state(), copy.deepcopy(run)
    assert torch.equal(twin.seeds, run.seeds) and same(finish(twin).x, finish(run).x)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_learned_noise_scale_of_0_has_a_gradient_of_fresh_noise():
    """d x/d scale at 0 is the noise itself, so it must not be everyone's."""
    plan, scale = plan_of("euler_ancestral"), torch.zeros((), requires_grad=True)
    sample = Sampler(plan, net, differentiable=True)
    ends = (sample(noise=unit(), noise_scale=scale) for _ in range(2))
    first, second = (torch.autograd.grad(end.sum(), scale)[0] for end in ends)
    assert first != second


@pytest.mark.parametrize(
    "where",
    [torch.inference_mode, lambda: torch.device("meta")],
    ids=["inference", "another default device"],
)
def test_the_generator_is_the_cpus_wherever_the_call_is_made(where):
    plan = plan_of("dpmpp_2m_sde")
    here = Run(plan, shape=(2, 3)).seeds
    torch.manual_seed(0)
    with where():
        there = Run(plan, shape=(2, 3), device="cpu").seeds
    assert torch.equal(there, here)


@pytest.mark.parametrize(
    "wrong",
    [{"noise_source": [unit()]}, {"guidance": 2.0}, {"noise_scale": [1.0, 2.0]}, {"mask": unit()}],
    ids=str,
)
def test_a_refused_call_draws_nothing(roads, wrong):
    state = torch.random.get_rng_state()
    for road in ROADS:
        with pytest.raises(ValueError):
            roads[road](plan_of("euler_ancestral"), shape=(3, 2, 5), **wrong)
    assert torch.equal(torch.random.get_rng_state(), state)


# -- other doors -----------------------------------------------------------------------------------
def test_what_brings_its_own_noise_draws_no_seed():
    plan, x, draws = plan_of("euler_ancestral", 4, EDM), unit() * 80, [0]

    def noise(*_):
        draws[0] += 1
        return torch.ones(3, 2, 5)

    state = torch.random.get_rng_state()
    k_sample(plan, lambda x, sigma: 0.5 * x, x, disable=True, noise_sampler=noise)
    assert draws[0] == 3 and torch.equal(torch.random.get_rng_state(), state)
    k_sample(plan, lambda x, sigma: 0.5 * x, x, disable=True)
    after = torch.random.get_rng_state()
    torch.random.set_rng_state(state)
    for _ in range(3):
        torch.randn(3, 2, 5)
    assert torch.equal(torch.random.get_rng_state(), after)


@pytest.mark.parametrize(
    ("source", "count"),
    [("EulerAncestralDiscreteScheduler", 3), ("LCMScheduler", 3), ("DDIMScheduler", 0)],
)
def test_a_scheduler_draws_its_noises_and_nothing_more(source, count):
    """With a generator of its own none from torch's; without, as many tensors as it draws.
    (compat: as many as its source draws.)
    """
    scheduler, x = FsScheduler(source=source, compat=None), unit(2, 4, 8, 8)

    def loop(**words):
        scheduler.set_timesteps(4)
        y = x
        for t in scheduler.timesteps:
            y = scheduler.step(0.1 * y, t, y, **words).prev_sample

    state = torch.random.get_rng_state()
    loop(generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.random.get_rng_state(), state)
    loop()
    after = torch.random.get_rng_state()
    torch.random.set_rng_state(state)
    for _ in range(count):
        torch.randn(x.shape)
    assert torch.equal(torch.random.get_rng_state(), after)


@pytest.mark.parametrize(
    "door",
    [metrics.run, lambda *call, **words: record(*call, **words).end],
    ids=["metrics.run", "record"],
)
def test_a_measurement_draws_the_same_on_the_same_noise_and_afresh_on_fresh(door):
    plan, state = gaussian_plan("euler_ancestral"), torch.random.get_rng_state()
    z = [torch.randn(4, 1024, generator=torch.Generator().manual_seed(k)) for k in range(2)]
    with torch.no_grad():
        a, b = (door(plan, GAUSSIAN, noise) for noise in z)
        assert abs(correlation(a, b)) < 5 / 64 and same(door(plan, GAUSSIAN, z[0], batch_size=3), a)
        double = door(plan, GAUSSIAN, z[0].double()).float()
        assert torch.allclose(double, a, rtol=0, atol=1e-4), "in any dtype of the same noise"
        assert correlation(*(door(plan, GAUSSIAN, noise, seed=0) for noise in z)) > 0.5
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_search_on_a_shape_draws_a_seed_and_keeps_it():
    model = GaussianMixture(np.ones((1, 4)), np.ones(1), 0.5).model(fs.schedules.EDM(), "x0")

    def search(**words):
        found = oss(model, (2, 4), 1, teacher=[10.0, 3.0, 1.0, 0.0], **words).plan.note["found"]
        return found["seed"], found["noise"]

    first, second = search(), search()
    assert first[0] != second[0] and first[1] != second[1]
    torch.manual_seed(0)
    assert search() == first == search(seed=first[0])
