"""Brownian-path noise: one path a seed whatever the steps, k-diffusion's where it is asked for, at
every door.
"""

import copy
import pickle
import sys
import warnings

import numpy as np
import pytest
import torch
from cases import same
from test_k_diffusion import SCHEDULE, SIGMAS, denoiser, start
from test_run import EDM, finish, net, plan_of, unit
from test_seed import GAUSSIAN, ROADS, roads  # noqa: F401

import fastsample as fs
from fastsample.interop import k_sample
from fastsample.plan.steps import begins, spans
from fastsample.solvers import SOLVERS
from tests.oracle import peers

pytestmark = pytest.mark.filterwarnings("error")  # torchsde warns of points beyond its path
PLAN, PATH = plan_of("euler_ancestral", 4, EDM), {"noise_source": fs.brownian()}
SIZE = (3, 2, 5)
ULP = float(np.finfo(np.float32).eps)


# -- right values ----------------------------------------------------------------------------------
def increments(schedule, rho, span):
    """begin -> (end, W(end) - W(begin)) of two samples' paths through these levels and to 0."""
    times = np.append(schedule.time(-np.log(rho)), schedule.t_zero)
    plan = SOLVERS["dpmpp_2m_sde"](schedule, times, prediction="x0")
    bound, like = fs.brownian(span=span).over((2, 600), plan), torch.empty(2, 600)
    noise = lambda k: bound.noise(torch.tensor([3, -1]), None, k, like)
    ends = [(round(b, 9), round(e, 9), k) for k, (e, b) in bound.parts.items()]
    return {b: (e, (b - e) ** 0.5 * noise(k)) for b, e, k in ends}


@pytest.mark.parametrize("span", [None, (0.002, 80.0)])
@pytest.mark.parametrize("schedule", [fs.schedules.EDM(), fs.schedules.VP(), fs.schedules.Flow()])
def test_fine_increments_add_up_to_the_coarse_one(schedule, span):
    """By float32 sums over some 30 halvings, of numbers below 6·sqrt(width of the path)."""
    rho, width = np.geomspace(60.0, 0.01, 16), 80.0 if span else 1.0
    fine, coarse = (increments(schedule, rho[::k], span) for k in (1, 3))
    assert len(fine) == 15 and len(coarse) == 5
    for begin, (end, whole) in coarse.items():
        total = torch.zeros_like(whole)
        while begin != end:
            begin, part = fine[begin]
            total += part
        assert (total - whole).abs().max() <= 64 * ULP * 6 * width**0.5 < whole.abs().max() / 100


# of dpmpp_sde k-diffusion's second increment is over the whole step, ours over the rest of it
PEERS = {
    "euler_ancestral": {},
    "dpmpp_2m_sde": {},
    "dpm_2_ancestral": {},
    "dpmpp_2s_ancestral": {},
    "dpmpp_sde": {"compat": "k-diffusion"},
}


@pytest.mark.parametrize("name", PEERS)
def test_equals_k_diffusion_on_its_tree(name):
    """Through k_sample on its own tree, and through a Sampler on ours over its levels."""
    code, x, sigmas = peers.k_diffusion(), start(), torch.tensor(SIGMAS)
    low, high = float(sigmas[-2]), float(sigmas[0])
    model = fs.Model(denoiser, SCHEDULE, "x0", time=1)
    plan = SOLVERS[name](model, SIGMAS, **PEERS[name])

    def theirs():
        tree = code.BrownianTreeNoiseSampler(x.float(), low, high, seed=[5, 9])
        return {"disable": True, "noise_sampler": lambda a, b: tree(a, b).double()}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = getattr(code, f"sample_{name}")(denoiser, x, sigmas, {}, **theirs())
        ends = [k_sample(plan, denoiser, x, **theirs())]
    words = {"seed": [5, 9], "noise_source": fs.brownian(span=(low, high))}
    ends.append(fs.Sampler(plan, model)(noise=x / high, check=None, **words))
    eps = ULP if name == "dpmpp_sde" else np.finfo(np.float64).eps
    for end in ends:
        assert (end - want).abs().max() <= 256 * eps * high


def test_a_noise_goes_over_its_part_of_the_step():
    """Rows between which: a step of two evaluations, with one noise and with two, a corrector that
    asks again, and churn, whose first noise belongs to no step.
    """
    of = lambda name, n=3, **options: plan_of(name, n, EDM, **options)
    assert spans(PLAN) == {1: (1, 2), 2: (2, 3), 3: (3, 4)}
    assert spans(of("dpmpp_2s_ancestral")) == {1: (1, 3), 2: (3, 5)}
    assert spans(of("seeds_2")) == {1: (1, 2), 2: (2, 3), 3: (3, 4), 4: (4, 5)}
    twice = of("sa_solver", evaluations=2)
    assert begins(twice) == [1, 2, 4] and spans(twice) == {1: (1, 2), 2: (2, 4)}
    assert begins(of("heun")) == [1, 3, 5] and begins(of("heunpp2", n=4))[:3] == [1, 4, 7]
    assert spans(of("heun", s_churn=3.0)) == {2: (1, 3), 3: (3, 5)}
    assert spans(of("euler_ancestral", start=1)) == {2: (1, 2)}


@pytest.mark.parametrize("name", ["euler_ancestral", "dpmpp_sde"])
def test_noises_are_unit_normal_and_independent(name):
    """10^5 numbers each: .013 is 4 standard errors of a correlation or a mean, .018 of a
    deviation.
    """
    plan, like = plan_of(name, 6, EDM), torch.empty(1, 100_000)
    bound = fs.brownian().over(like.shape, plan)
    seed = torch.tensor([12])
    draws = torch.cat([bound.noise(seed, None, k, like) for k in [0, *bound.parts]]).double()
    assert len(draws) > 5
    assert draws.mean(1).abs().max() < 0.013
    off = torch.corrcoef(draws) - torch.eye(len(draws))
    assert off.abs().max() < 0.013 and (draws.std(1) - 1).abs().max() < 0.018


@pytest.mark.parametrize("name", ["dpmpp_2m_sde", "euler_ancestral"])
def test_runs_of_more_steps_come_nearer_to_one_path(name):
    """Strong order 1 with the path: the error falls as 1/N. With noise of their own two runs stay
    as far apart as two samples, of standard deviation 1, given one x of standard deviation 10.
    """
    z, rho = unit(1, 1500), np.append(np.geomspace(10.0, 0.1, 97), 0.0)

    def end(every, **words):
        levels = np.append(rho[:-1:every], 0.0)
        plan = SOLVERS[name](GAUSSIAN, levels)
        return fs.Sampler(plan, GAUSSIAN)(noise=z, seed=4, **words)

    exact = end(1, **PATH)
    on, off = (
        [float((end(k, **words) - exact).square().mean().sqrt()) for k in (12, 6, 3)]
        for words in (PATH, {})
    )
    assert all(1.7 < a / b < 3.0 for a, b in zip(on[:-1], on[1:], strict=True)), on
    assert min(off) > 0.9 > 8 * on[-1], (on, off)


# -- whose path it is ------------------------------------------------------------------------------
@pytest.mark.parametrize("road", ROADS)
def test_a_path_is_its_seed_and_stage_alone(roads, road):  # noqa: F811
    """At every door, in any company, in any dtype."""
    z = unit(*SIZE)
    call = lambda at=slice(None), seed=(9, 5, -3), **words: roads[road](
        PLAN, noise=z[at], seed=list(seed), **PATH, **words
    )
    whole = call()
    assert same(whole, finish(fs.Run(PLAN, noise=z, seed=[9, 5, -3], **PATH)).x)
    for b, seed in enumerate((9, 5, -3)):
        assert same(call(slice(b, b + 1), [seed]), whole[b : b + 1])
    assert same(call([2, 0], [-3, 9]), whole[[2, 0]])
    assert not torch.allclose(call(stage=1), whole, atol=0.1)
    assert not torch.allclose(call(seed=(9, 6, -3))[1], whole[1], atol=0.1)
    double = roads[road](PLAN, noise=z.double(), seed=[9, 5, -3], **PATH)
    assert double.dtype == torch.float64 and torch.allclose(double.float(), whole, rtol=1e-3)
    torch.manual_seed(0)
    assert not torch.allclose(*(roads[road](PLAN, noise=z, **PATH) for _ in range(2)), atol=0.1)


def test_a_request_of_an_engine_follows_its_path_beside_others():
    engine = fs.Engine(net, SIZE[1:], 4)
    plans = [PLAN, plan_of("dpmpp_2s_ancestral", 3, EDM), PLAN]
    sources = [PATH, PATH, {}]
    tickets = []
    for k in range(3):
        tickets.append(engine.submit(plans[k], seed=k, **sources[k]))
        engine.tick()
    engine.run()
    for k, ticket in enumerate(tickets):
        run = fs.Run(plans[k], shape=(1, *SIZE[1:]), seed=k, **sources[k])
        assert same(ticket.result(), finish(run).x)


@pytest.mark.parametrize("name", ["euler_ancestral", "dpmpp_sde", "heun"])
def test_a_plan_that_starts_later_goes_on_along_the_path(name):
    plan = plan_of(name, 6, EDM, **({"s_churn": 3.0} if name == "heun" else {"eta": 0.7}))
    _, states = fs.Sampler(plan, net)(noise=unit(*SIZE), seed=7, trajectory=True, **PATH)
    later = plan.remake(3)
    at = states[plan.rows - later.rows]
    assert same(finish(fs.Run(later, latent=at, start=1, seed=7, **PATH)).x, states[-1])
    assert not same(finish(fs.Run(later, latent=at, start=1, seed=8, **PATH)).x, states[-1])


def test_a_run_goes_on_as_any_other():
    """Copied, pickled, begun again, by another plan too, and with samples chosen among."""
    run = fs.Run(PLAN, shape=SIZE, seed=7, **PATH)
    run.step(net(run.model_input, run.t))
    twins = run, copy.deepcopy(run), pickle.loads(pickle.dumps(run))
    chosen = copy.deepcopy(run)
    chosen.select([2, 0])
    right = fs.Sampler(PLAN, net)(shape=SIZE, seed=7, **PATH)
    assert all(same(finish(one).x, right) for one in twins)
    assert same(finish(chosen).x, right[[2, 0]])
    z, other = unit(*SIZE), plan_of("euler_ancestral", 5, EDM)
    for plan in (PLAN, other):
        run.restart(z, seed=9, plan=plan)
        assert same(finish(run).x, fs.Sampler(plan, net)(noise=z, seed=9, **PATH))


# -- what is refused -------------------------------------------------------------------------------
PLAN_BELOW = SOLVERS["euler_ancestral"](EDM, [60.0, 5.0, 1.0, 0.001, 0.0])
UP = SOLVERS["restart"](EDM, [3.0, 1.0, 0.3, 0.0], intervals=[(2, 2, 0.3, 2.0)])


@pytest.mark.parametrize("road", [*ROADS, "Engine"])
def test_a_plan_off_the_path_is_refused(roads, road):  # noqa: F811
    submitted = lambda plan, noise, **words: fs.Engine(net, SIZE[1:]).submit(plan, **words)
    call = submitted if road == "Engine" else roads[road]
    for plan, source, said in (
        (UP, fs.brownian(), "row 4 of this plan draws noise 1 between sigma/alpha 1 and 2, "),
        (PLAN, fs.brownian(span=(0.1, 90)), "row 4 of this plan is at 0.002; levels inside"),
        (PLAN, fs.brownian(span=(0.001, 70.0)), "from 0.001 to 70, and row 1 .* is at 80"),
    ):
        with pytest.raises(ValueError, match=said):
            call(plan, noise=unit(*SIZE), seed=1, noise_source=source)


def test_a_plan_off_the_path_leaves_a_run_as_it_was():
    run = fs.Run(PLAN, noise=unit(*SIZE), seed=7, noise_source=fs.brownian(span=(0.002, 80.0)))
    right = copy.deepcopy(run)
    with pytest.raises(ValueError, match="row 4 of this plan is at 0.001; levels inside"):
        run.restart(unit(*SIZE, seed=1), seed=3, plan=PLAN_BELOW)
    assert same(finish(run).x, finish(right).x)


def test_what_is_no_span_is_refused():
    for span in ("ab", (1.0,), (2.0, 1.0), (-1.0, 1.0), (0.0, np.inf), 3.0, (0.0, None)):
        with pytest.raises(ValueError, match="^brownian: span = .*the lower first, are accepted"):
            fs.brownian(span=span)


def test_without_torchsde_one_sentence_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchsde", None)
    with pytest.raises(ImportError, match=r"^brownian: torchsde.*pip install 'fastsample\[brown"):
        fs.brownian()


def test_under_a_transform_it_is_refused():
    sampler = fs.Sampler(PLAN, net, differentiable=True)
    call = lambda x: sampler(noise=x, seed=1, check=None, **PATH)
    with pytest.raises(RuntimeError, match="a Brownian path, .* under torch.func"):
        torch.func.vmap(call)(unit(2, *SIZE))
    x = unit(*SIZE).requires_grad_()
    call(x).sum().backward()
    assert x.grad.isfinite().all()
