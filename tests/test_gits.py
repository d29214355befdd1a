"""gits: its costs against local errors taken one by one, its paths against brute force, and what it
asks of a model.
"""

import itertools

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import metrics
from fastsample.kernels import normal
from fastsample.models import analytic
from fastsample.optimize import gits
from fastsample.optimize._shortest import shortest
from fastsample.trajectories import record

SCHEDULES = {
    "EDM": (fs.schedules.EDM(), "x0"),
    "VE": (fs.schedules.VE(), "x0"),
    "VP": (fs.schedules.VP(), "eps"),
    "DiscreteVP": (fs.schedules.DiscreteVP.linear(), "v"),
    "zero terminal SNR": (fs.schedules.DiscreteVP.linear().zero_terminal_snr(), "v"),
    "Flow": (fs.schedules.Flow(3), "flow"),
    "TrigFlow": (fs.schedules.TrigFlow(), "trigflow"),
}
LAW = analytic.GaussianMixture(
    np.random.default_rng(0).standard_normal((3, 4)), np.ones(3) / 3, 0.3
)
pytestmark = pytest.mark.filterwarnings("ignore:.*the teacher")


def noise(B=3, D=4, seed=0):
    seeds = torch.arange(B) + seed
    return normal(seeds, torch.zeros_like(seeds), D).double()


def taught(name, N=6):
    """A model, and a plan of N steps that is the teacher as it is, judged by nothing."""
    model = LAW.model(*SCHEDULES[name])
    plan = fs.solvers.dpmpp_2m(model, fs.grids.fine(model.schedule, N))
    return model, plan.with_note(solver="the teacher")


def norm(y, w, power=2.0):
    return (w * np.abs(y) ** power).mean() ** (1 / power)


def off_the_line(y, ends, w):
    """Distance of y from the line through x_T and x_0."""
    line = ends[0] - ends[1]
    return norm(y - ends[1] - (w * (y - ends[1]) * line).sum() / (w * line**2).sum() * line, w)


def local_errors(model, plan, z, measure, weight=None):
    """c [N+1,N+1] by the definition, one jump and one sample after another, in float64."""
    run, t = record(plan, model, z), np.array(plan.note["times"])[::-1]
    X, x0 = run.x.flip(0).numpy(), run.x0.flip(0).numpy()
    alpha, sigma = model.schedule.alpha(t), model.schedule.sigma(t)
    N, c = len(t) - 1, np.zeros((len(t), len(t)))
    w = np.ones(X.shape[1:]) if weight is None else weight
    for b, i in itertools.product(range(len(z)), range(1, N + 1)):
        # alpha may be 0 at the noise end: a point of the line as far out as need be
        ends = X[0, b] + 1e3 * (X[N, b] - alpha[N] * X[0, b]), X[0, b]
        noise = (X[i, b] - alpha[i] * x0[i - 1, b]) / sigma[i]
        for j in range(i):
            y, at = x0[i - 1, b] + sigma[j] / alpha[j] * noise, X[j, b] / alpha[j]
            if measure == "chord":
                c[i, j] += off_the_line(y, ends, w[b]) - off_the_line(at, ends, w[b])
            else:
                c[i, j] += norm(y - at, w[b], float(measure[1]))
    return c / len(z)


@pytest.mark.parametrize(
    "name, measure, B, weighted",
    [
        *((name, "chord", 2, False) for name in SCHEDULES),
        ("EDM", "l1", 2, False),
        ("Flow", "l2", 2, False),
        ("Flow", "chord", 2, True),
        ("EDM", "l1", 2, True),
        ("VP", "l2", 18, True),
    ],
)
def test_its_path_is_the_best_of_all_by_local_errors_one_by_one(name, measure, B, weighted):
    model, teacher = taught(name)
    weight, gamma = torch.tensor([1.0, 2.0, 0.5, 0.0]) if weighted else None, 1.0 - 0.2 * weighted
    words = {"teacher": teacher, "measure": measure, "gamma": gamma, "weight": weight}
    search = gits(model, noise(B), 3, **words)
    w = metrics.element_weights("test", weight, (B, 4))
    c = local_errors(model, teacher, noise(B), measure, w)
    for m, plan in search.plans.items():
        every = [(6, *inner, 0) for inner in itertools.combinations(range(5, 0, -1), m - 1)]
        totals = {nodes: summed(c, nodes, gamma) for nodes in every}
        own = totals[tuple(6 - search.indices[m])]
        assert own == pytest.approx(min(totals.values()), rel=1e-9, abs=1e-12)
        assert plan.note["found"]["cost"] == pytest.approx(own, rel=1e-9, abs=1e-12)


def summed(cost, nodes, growth):
    return sum(growth**k * cost[i, j] for k, (i, j) in enumerate(itertools.pairwise(nodes)))


@pytest.mark.parametrize("growth", [0.7, 1.0, 1.3])
def test_growth_counts_from_the_noise_end(growth):
    cost = np.abs(np.random.default_rng(0).standard_normal((8, 8)))
    cost[5, 2] = np.nan
    for m, nodes in shortest(cost, 4, growth).items():
        ways = [(7, *inner, 0) for inner in itertools.combinations(range(6, 0, -1), m - 1)]
        assert summed(cost, nodes, growth) == np.nanmin([summed(cost, w, growth) for w in ways])


@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m", "unipc"])
def test_the_plans_are_the_solvers_on_the_path_and_their_error_is_their_runs(solver):
    model, z = LAW.model(fs.schedules.Flow(3), "flow"), noise()
    search = gits(model, z, 3, solver=solver, teacher=taught("Flow", 12)[1])
    target = metrics.run(search.teacher, model, z)
    for m, plan in search.plans.items():
        made = fs.solvers.SOLVERS[solver](model, search.grid[search.indices[m]])
        assert all(np.array_equal(a, b) for a, b in zip(plan.table(), made.table(), strict=True))
        own = metrics.mse(metrics.run(plan, model, z), target)
        assert search.error[m] == pytest.approx(own, rel=1e-12)
        found = plan.note["found"]
        assert found["method"] == "gits" and found["measure"] == "chord"
        assert found["gamma"] == 1.0 and found["start_label"] == search.grid[0]


def counted(model, asked):
    def fn(x, t, **words):
        asked.append(len(x))
        return model(x, t, **words)

    return fs.Model(fn, model.schedule, model.prediction, time=model.time)


@pytest.mark.parametrize("budgets", [True, False])
@pytest.mark.parametrize("N", [1, 2, 9])
def test_what_it_asks_is_what_its_docstring_says(N, budgets):
    asked, most = [], min(N, 4)
    model = LAW.model(fs.schedules.EDM(), "x0")
    search = gits(counted(model, asked), noise(), most, teacher=N, all_budgets=budgets)
    walks = sum(range(1, most + 1)) if budgets else most
    assert search.nfe == search.teacher.nfe + search.agreement_nfe + N - 1 + walks
    assert sum(asked) == 3 * search.nfe
    assert list(search.plans) == (list(range(1, most + 1)) if budgets else [most])


def shifted(x, t, shift=0.0):
    return torch.tanh(x) * 0.7 + shift


def test_guidance_finds_what_the_combined_model_finds():
    schedule = fs.schedules.EDM()
    words = {"teacher": 12, "cond": {"shift": 0.3}, "uncond": {"shift": -0.1}, "guidance": 2.0}
    guided = gits(fs.Model(shifted, schedule, "x0"), noise(), 3, **words)
    combined = fs.Model(lambda x, t: shifted(x, t, 2 * 0.3 + 0.1), schedule, "x0")
    alone = gits(combined, noise(), 3, teacher=12)
    for m in alone.plans:
        assert np.array_equal(guided.indices[m], alone.indices[m])
        assert guided.error[m] == pytest.approx(alone.error[m], rel=1e-9)
        assert guided.plans[m].G == 1 and guided.plans[m].note["found"]["guidance"] == 2.0


def test_states_of_16_bits_take_half_and_find_nearly_the_same():
    model, teacher = taught("EDM", 12)
    wide, half = (
        gits(model, noise().float(), 3, teacher=teacher, state_dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert wide.bytes == 2 * half.bytes == 4 * 3 * 4 * (3 * 12 + 1)
    costs = [search.plan.note["found"]["cost"] for search in (wide, half)]
    assert costs[1] == pytest.approx(costs[0], rel=0.05)


@pytest.mark.parametrize(
    "words, sentence",
    [
        ({"solver": "rk45"}, "solver='rk45'; 'ddim' or"),
        ({"solver": "heun"}, "solver='heun' asks the model 3 times in 2 steps"),
        ({"solver": "euler_ancestral"}, "solver='euler_ancestral' asks the model 2 times"),
        ({"measure": "dev"}, "measure='dev'; 'chord' or 'l1' or 'l2' is accepted"),
        ({"gamma": 0}, "gamma=0; a number from 0.1 to 10 is accepted"),
        ({"gamma": "1"}, "gamma='1'; a number from 0.1 to 10 is accepted"),
        ({"budget": 9, "teacher": 8}, "budget=9 on a teacher grid of 8 steps"),
    ],
)
def test_bad_input_is_one_sentence_before_the_model_is_asked(words, sentence):
    asked = []
    model = counted(LAW.model(fs.schedules.EDM(), "x0"), asked)
    with pytest.raises(ValueError, match=r"^gits: ") as caught:
        gits(model, noise(), **words)
    assert sentence in str(caught.value) and not asked
