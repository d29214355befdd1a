"""ays: its bound against closed forms on Gaussian data, its optimum against brute force and the
published descent, and what it asks the model.
"""

import itertools

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import metrics
from fastsample.kernels import normal
from fastsample.models import analytic, classifier
from fastsample.optimize import _klub, ays
from fastsample.optimize._frechet import frechet
from fastsample.optimize.ays import _begin

SCHEDULES = {
    "edm": fs.schedules.EDM(),
    "flow": fs.schedules.Flow(3),
    "vp": fs.schedules.VP(),
    "table": fs.schedules.DiscreteVP.linear(),
    "ve": fs.schedules.VE(),
    "trigflow": fs.schedules.TrigFlow(0.5),
}
PREDICTIONS = {
    "edm": "edm",
    "flow": "flow",
    "vp": "v",
    "table": "eps",
    "ve": "eps",
    "trigflow": "trigflow",
}


def subject(schedule="edm", D=3):
    draw = np.random.default_rng(0)
    law = analytic.GaussianMixture(draw.standard_normal((3, D)), np.ones(3) / 3, 0.3)
    return law, law.model(SCHEDULES[schedule], PREDICTIONS[schedule])


def noise(B, D=3, seed=0):
    seeds = torch.arange(B) + seed
    return normal(seeds, torch.zeros_like(seeds), D).double()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_it_finds_the_least_sum_of_a_tiny_grid(schedule):
    """Worked out a second time from the mixture's own posterior, every path of every length."""
    law, model = subject(schedule)
    data, z, N = torch.from_numpy(law.sample(5, seed=1)), noise(5), 7
    search = ays(model, z, N, data=data, steps=N, sigma_min=0.1, seed=None)
    t, level = _klub.nodes_of(model.schedule, 0.1, N)
    seed = search.plan.note["found"]["draws"]
    x = _klub.noised(data, model, t, torch.arange(5) + seed)
    alpha, sigma = model.schedule.alpha(t), model.schedule.sigma(t)
    said = torch.stack([law.denoise(x[:, k], alpha[k], sigma[k]) for k in range(N + 1)], 1)
    C = (said[:, :, None] - said[:, None]).square().sum(-1).mean(0).numpy()
    K = _klub.intervals(C, level, 3.0, 0.5)
    for m in range(1, N + 1):
        inner = itertools.combinations(range(N - 1, 0, -1), m - 1)
        sums = {(N, *k, 0): K[(N, *k), (*k, 0)].sum() for k in inner}
        best = min(sums.values())
        assert search.error[m] == pytest.approx(best, rel=1e-8)
        assert sums[tuple(N - search.indices[m])] == pytest.approx(best, rel=1e-8)
        assert search.plans[m].nfe == m
        grid = np.array(search.plans[m].note["grid"])
        assert np.array_equal(grid, search.grid[search.indices[m]])
        assert (grid[0], grid[-1]) == (model.schedule.t_max, model.schedule.t_zero)


def test_schedules_of_the_same_levels_give_the_same_bound():
    """Paths and predictions are those of x/alpha, whatever stands before it."""
    law, model = subject("vp")
    low, high = 0.05, float(np.exp(-model.schedule.half_log_snr(1.0)))
    other = law.model(fs.schedules.EDM(low, high), "x0")
    words = {"data": torch.from_numpy(law.sample(8)), "sigma_min": low, "steps": 30}
    first, second = (ays(m, noise(8), 6, **words) for m in (model, other))
    for m in range(1, 7):
        assert np.array_equal(first.indices[m], second.indices[m])
        assert first.error[m] == pytest.approx(second.error[m], rel=1e-9)


@pytest.mark.parametrize("schedule", ["edm", "flow", "table"])
def test_the_published_descent_is_never_below_the_optimum(schedule):
    """On the same samples; each subdivision keeps the knots that were there."""
    law, model = subject(schedule)
    budget = 20 if schedule == "edm" else 11
    words = {"data": torch.from_numpy(law.sample(16)), "steps": 60}
    exact = ays(model, noise(16), budget, **words)
    descent = ays(model, noise(16), budget, method="descent", **words)
    assert all(exact.error[m] <= descent.error[m] * (1 + 1e-12) for m in range(1, budget + 1))
    assert exact.error[10] < descent.error[10]
    if budget == 20:
        ten = ays(model, noise(16), 10, method="descent", **words)
        assert np.array_equal(ten.indices[10], descent.indices[20][::2])
        short = ays(model, noise(16), 10, method="descent", sweeps=1, **words)
        assert short.error[10] > ten.error[10]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_descent_begins_at_the_published_schedules(schedule):
    """Within half a node of 400: s^(1/7) in even steps, or the times of a table."""
    _, model = subject(schedule)
    t, level = _klub.nodes_of(model.schedule, 0.03, 400)
    nodes = _begin(model.schedule, t, level)
    assert (nodes[0], nodes[-1]) == (400, 0)
    top = model.schedule.half_log_snr(model.schedule.t_finite)
    if schedule == "table":
        wanted = model.schedule.half_log_snr(np.linspace(t[-1], t[0], 11))
    else:
        wanted = -7 * np.log(np.linspace(np.exp(-top / 7), 0.03 ** (1 / 7), 11))
    assert np.abs(level[nodes] - wanted)[1:].max() <= 0.501 * (level[0] - top) / 400


def recorded():
    law, inner = subject()
    rows = []

    def fn(x, t, label=None):
        assert label is None or len(label) == len(x)
        rows.append(len(x))
        return law.denoise(x, np.ones(len(x)), t)

    return fs.Model(fn, inner.schedule, "x0"), law, rows


def test_beside_data_the_model_is_asked_once_a_level():
    model, law, rows = recorded()
    data = torch.from_numpy(law.sample(20))
    words = {"cond": {"label": list(range(20))}, "batch_size": 50}
    search = ays(model, noise(20), 5, data=data, steps=11, **words)
    assert sum(rows) == 20 * 12 == 20 * search.nfe and max(rows) <= 50
    assert search.agreement is None and search.plan.note["found"]["samples_of"] == "data"


@pytest.mark.filterwarnings("ignore:ays. the teacher")
def test_without_data_the_teachers_samples_are_noised():
    model, law, rows = recorded()
    search = ays(model, noise(6), 4, steps=11, teacher=8)
    assert sum(rows) == 6 * search.nfe
    assert search.nfe == search.teacher.nfe + search.agreement_nfe + 12
    data = metrics.run(search.teacher, model, noise(6))
    again = ays(model, noise(6), 4, data=data, steps=11)
    assert {m: plan.M.tobytes() for m, plan in again.plans.items()} == {
        m: plan.M.tobytes() for m, plan in search.plans.items()
    }
    assert again.error == search.error


def only_karras(monkeypatch):
    """Of the schedules made by hand one."""
    karras = lambda model, nfe: fs.solvers.euler(model, fs.grids.karras(model.schedule, nfe))
    one = lambda model, nfe, solver: [("euler", "Karras", karras(model, nfe))]
    monkeypatch.setattr(metrics, "by_hand", one)


HELD_OUT = {
    "elements": {},
    "features": {"features": lambda x: 2 * x[:, :2]},
    "weights": {"weight": [1.0, 0.5, 0.0]},
    "states": {"state_dtype": torch.float64},
}


@pytest.mark.filterwarnings("ignore:ays. the teacher")
@pytest.mark.parametrize("name", HELD_OUT)
def test_held_out_noise_shows_both_metrics(name, monkeypatch):
    model, law, rows = recorded()
    if name != "elements":
        only_karras(monkeypatch)
    dtype = torch.float32 if name == "states" else torch.float64
    z, unseen = noise(12).to(dtype), noise(6, seed=50).to(dtype)
    data = torch.from_numpy(law.sample(12)).to(dtype)
    words = {"data": data, "steps": 11, "teacher": 4, "held_out": unseen}
    search = ays(model, z, 1, **words, **HELD_OUT[name])
    assert sum(rows) == round(12 * (search.nfe + search.compared_nfe))
    plan, said = search.plan, search.plan.note["found"]
    karras = fs.solvers.dpmpp_2m_sde(model, fs.grids.karras(model.schedule, 1))
    each = {"found": plan, "Karras": karras, "by_hand": search.compared[1].plan}
    seen = HELD_OUT[name].get("features", lambda x: x.double())
    if name == "weights":
        seen = lambda x: x * torch.tensor([2.0, 1.0, 0.0], dtype=dtype).sqrt()
    for word, one in each.items():
        end = metrics.run(one, model, unseen, state_dtype=torch.float64)
        wanted = frechet(seen(end), seen(data))
        assert search.frechet[1][word] == pytest.approx(wanted, rel=1e-12)
    assert search.agreement is not None  # the PSNR is to a teacher that was settled
    assert said["frechet"] == search.frechet[1] and "by_hand" in said["compared"]
    assert "for stochastic solvers" in said["for"] and "not PSNR" in said["for"]
    assert all(word in repr(search) for word in ("stochastic", "dB", "Fréchet", "Karras", "nats"))
    assert fs.Plan.from_json(plan.to_json()) == plan


def test_another_power_is_no_bound():
    model, law, _ = recorded()
    search = ays(model, noise(3), 1, data=torch.from_numpy(law.sample(3)), steps=11, power=2.0)
    assert "nats" not in repr(search) and "integral with s^-2" in repr(search)


def test_a_run_that_does_not_stay_finite_is_at_an_infinite_distance(monkeypatch):
    """A model that breaks down at levels which the search never asked."""
    law, inner = subject()
    only_karras(monkeypatch)

    def fn(x, t):
        out = law.denoise(x, np.ones(len(x)), t)
        return torch.where((t < 0.01)[:, None], torch.nan, out)

    model, data = fs.Model(fn, inner.schedule, "x0"), torch.from_numpy(law.sample(4))
    teacher = fs.solvers.euler(model, [80.0, 10.0, 1.0, 0.1, 0.0]).with_note(solver="mine")
    words = {"data": data, "steps": 9, "teacher": teacher, "held_out": noise(3, seed=9)}
    search = ays(model, noise(4), 2, all_budgets=False, **words)
    assert search.frechet[2]["Karras"] == np.inf > search.frechet[2]["found"]
    assert search.plan.note["found"]["frechet"]["Karras"] == "inf"


def test_the_frechet_distance_is_that_of_the_covariances():
    draw = torch.Generator().manual_seed(0)
    # Of fewer samples than features that takes the root of eigenvalues which are rounding.
    for n, k, D, to in ((40, 30, 5, 1e-9), (9, 12, 20, 1e-7)):
        a, b = (torch.randn(m, D, generator=draw).double() for m in (n, k))
        b = 0.5 * b + 1
        wanted = classifier.frechet(*classifier.statistics(a), *classifier.statistics(b))
        assert frechet(a, b) == pytest.approx(wanted, rel=to)
        assert frechet(a, a) == pytest.approx(0.0, abs=1e-12 * D)


@pytest.mark.parametrize("solver", list(fs.solvers.SOLVERS))
def test_any_solver_makes_the_plans(solver):
    """Budgets are evaluations: a solver of two a step has those it can spend."""
    law, model = subject()
    search = ays(model, noise(4), 6, solver=solver, data=torch.from_numpy(law.sample(4)), steps=20)
    assert all(plan.nfe == m and plan.note["solver"] == solver for m, plan in search.plans.items())
    assert max(search.plans) >= 4  # of three evaluations a step: 1, 4, 7
    lengths = [len(search.indices[m]) - 1 for m in search.plans]
    assert lengths == list(range(1, len(lengths) + 1))


def test_blocks_of_samples_change_nothing(monkeypatch):
    """Each sample has its own path and its own words in whatever block it stands."""
    law, inner = subject()
    told = lambda x, t, shift: law.denoise(x, np.ones(len(x)), t) + shift * x
    model = fs.Model(told, inner.schedule, "x0")
    shift = torch.linspace(-0.5, 0.5, 7, dtype=torch.float64)[:, None]
    words = {"data": torch.from_numpy(law.sample(7)), "steps": 9, "cond": {"shift": shift}}
    whole = ays(model, noise(7), 3, **words)
    monkeypatch.setattr(_klub, "BLOCK", 3)
    assert ays(model, noise(7), 3, **words).error == pytest.approx(whole.error, rel=1e-12)


def test_guidance_is_in_the_bound():
    law, inner = subject()
    denoise = lambda x, t: law.denoise(x, np.ones(len(x)), t)
    told = fs.Model(lambda x, t, shift: denoise(x, t) + shift * x, inner.schedule, "x0")
    alone = fs.Model(lambda x, t: denoise(x, t) + 0.3 * x, inner.schedule, "x0")
    data, z = torch.from_numpy(law.sample(8)), noise(8)
    shift = torch.full((8, 1), 0.1, dtype=torch.float64)
    words = {"cond": {"shift": shift}, "uncond": {"shift": 0 * shift}, "guidance": 3.0}
    search = ays(told, z, 3, data=data, steps=12, **words)
    plain = ays(alone, z, 3, data=data, steps=12)
    assert search.error == pytest.approx(plain.error, rel=1e-9)
    assert search.plan.note["found"]["guidance"] == 3.0


def test_padding_does_not_count():
    """Weights have a mean of 1: those of the half that counts are 2."""
    law, inner = subject()
    denoise = lambda x, t: law.denoise(x[:, :3], np.ones(len(x)), t)
    model = fs.Model(denoise, inner.schedule, "x0")
    wide = lambda x, t: torch.cat([denoise(x, t), 1e3 * t[:, None] * x[:, 3:]], 1)
    wide = fs.Model(wide, inner.schedule, "x0")
    data = torch.from_numpy(law.sample(8))
    words = {"seed": 7, "steps": 12}
    plain = ays(model, (8, 3), 3, data=data, **words)
    data = torch.cat([data, 100 + data], 1)
    padded = ays(wide, (8, 6), 3, data=data, weight=[1.0] * 3 + [0.0] * 3, **words)
    assert padded.error == pytest.approx({m: 2 * e for m, e in plain.error.items()}, rel=1e-5)
    assert ays(wide, (8, 6), 3, data=data, **words).error[3] > 100 * padded.error[3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_dtypes(dtype):
    """Paths are of one dtype for all: that which is computed in."""
    law, model = subject()
    words = {"data": torch.from_numpy(law.sample(8)).float(), "steps": 20}
    search = ays(model, noise(8).float(), 4, state_dtype=dtype, **words)
    words["data"] = words["data"].double()
    exact = ays(model, noise(8), 4, **words)
    assert search.error == pytest.approx(exact.error, rel=1e-4)


def test_one_block_of_samples_is_held_at_a_time():
    """Whatever comes after it, and within what may be taken."""
    law, model = subject()
    data = torch.from_numpy(law.sample(64))
    search = ays(model, noise(64), 3, data=data, steps=20)
    most = 64 * 3 * 8 + 3 * 8 * 64 * -(-2 * 21 * 16 // 64)
    assert search.bytes <= most
    with pytest.raises(ValueError, match="ays: states of 64 samples take"):
        ays(model, noise(64), 3, data=data, steps=20, max_bytes=search.bytes - 1)


@pytest.mark.parametrize(
    "words, sentence",
    [
        ({"method": "greedy"}, "ays: method='greedy'; 'exact' or 'descent' is accepted"),
        ({"solver": "none"}, "ays: solver='none'; 'ddim' or"),
        ({"budget": 0}, "ays: budget=0; an integer of at least 1"),
        ({"steps": 2.5}, "ays: steps=2.5; an integer of at least 1"),
        ({"steps": 3, "budget": 4}, "ays: steps=3 for budget=4; at least 4 is accepted"),
        ({"steps": 9, "method": "descent"}, "ays: steps=9 for budget=3; at least 10 is accepted"),
        ({"sweeps": 0}, "ays: sweeps=0; an integer of at least 1"),
        ({"power": 0}, "ays: power=0; a number above 0"),
        ({"power": float("nan")}, "ays: power=nan; a number above 0"),
        ({"c": "half"}, "ays: c='half'; a number above 0"),
        ({"sigma_min": 0.001}, "ays: sigma_min=0.001; a sigma/alpha of the schedule from 0.002"),
        ({"sigma_min": 80.0}, "ays: sigma_min=80.0; .* below 80, or None"),
        ({"sigma_min": "low"}, "ays: sigma_min='low'; a sigma/alpha of the schedule"),
        ({"data": noise(3)}, r"ays: data is float64 \[3, 3\] on cpu beside noise \[2, 3\]"),
        ({"data": noise(2).long()}, r"ays: data is int64 \[2, 3\]"),
        ({"data": noise(2) / 0}, "ays: data is not finite throughout"),
        ({"data": [1.0]}, "ays: data is a list"),
        ({"features": 3}, "ays: features is a int; a function of a tensor"),
        ({"solver": "heun", "budget": 4, "all_budgets": False}, "ays: budget=4; .* 1, 3, 5, 7"),
        ({"guidance": 2.0}, "ays: one of guidance and uncond is given"),
        ({"held_out": noise(1, seed=9)}, "ays: 1 noises of held_out beside 2 of z; at least 2"),
        ({"z": noise(2) / 0}, "ays: z holds a number that is not finite"),
        ({"model": 3}, "ays: the model is a int; an fs.Model is needed"),
    ],
)
def test_bad_input_is_one_sentence_before_the_model_is_asked(words, sentence):
    model, _, rows = recorded()
    given = {"model": model, "z": noise(2), "budget": 3} | words
    with pytest.raises((ValueError, TypeError), match=sentence):
        ays(given.pop("model"), given.pop("z"), given.pop("budget"), **given)
    assert not rows


def test_an_answer_that_is_not_finite_is_refused():
    law, inner = subject()
    model = fs.Model(
        lambda x, t: law.denoise(x, np.ones(len(x)), t) / (t[:, None] > 1), inner.schedule, "x0"
    )
    with pytest.raises(ValueError, match="the model's output at its time .* is not finite"):
        ays(model, noise(2), 2, data=torch.zeros(2, 3).double())


def test_eps_has_no_x0_at_pure_noise():
    law, _ = subject()
    with pytest.raises(ValueError, match="eps"):
        ays(law.model(fs.schedules.Flow(), "eps"), noise(2), 2, data=noise(2))
