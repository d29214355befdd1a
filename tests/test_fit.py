"""fit: the dynamic program against brute force, its rows against float64 least squares, and the
plans it makes against what it says of them.
"""

import itertools

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import metrics
from fastsample.kernels import normal
from fastsample.models import analytic
from fastsample.optimize import _families, _paths, fit, oss
from fastsample.trajectories import Denoiser

SCHEDULES = {"edm": fs.schedules.EDM(), "flow": fs.schedules.Flow(3)}
SCHEDULES["vp"] = fs.schedules.DiscreteVP.linear()
MULTISTEP = ("euler", "dpmpp_2m", "dpmpp_3m", "unipc")


def subject(schedule="edm", prediction="x0", D=4):
    draw = np.random.default_rng(0)
    law = analytic.GaussianMixture(draw.standard_normal((3, D)), np.ones(3) / 3, 0.3)
    return law.model(SCHEDULES[schedule], prediction)


def noise(B, D=4, seed=0):
    seeds = torch.arange(B) + seed
    return normal(seeds, torch.zeros_like(seeds), D).double()


def paths_of(rows, X, budgets, *, history=9, beam=10_000, aggregate="mean", judged=0):
    """The dynamic program on targets of any kind."""
    model, z, N = subject(), noise(len(X)), X.shape[1] - 1
    t = fs.grids.fine(model.schedule, N)[::-1].copy()
    ask = Denoiser(model, t, z, dtype=torch.float64)
    options = _paths.Options(budgets, "free", (1.0,), history, beam, aggregate, judged)
    found = _paths.Paths(options, ask, _families.rows_of(rows, model, t), z, X)
    found.fill()
    return found


def targets(B=3, N=5):
    return torch.from_numpy(np.random.default_rng(1).standard_normal((B, N + 1, 4)))


def least_squares(A, y, family, j):
    """The row to target j by LAPACK's least squares, the ridge as further equations."""
    base, free = family.base[:, j], family.free
    if not free.size:
        return base
    columns = A @ free
    size = np.sqrt((columns**2).sum(0))
    wanted, ridge = np.append(y - A @ base, np.zeros(len(size))), _paths.RIDGE
    while True:
        damped = np.concatenate([columns / size, np.sqrt(ridge) * np.eye(len(size))])
        w = base + free @ (np.linalg.lstsq(damped, wanted, rcond=None)[0] / size)
        if np.abs(w[1:]).sum() <= _paths.HEAVIEST:
            return w
        ridge *= 100


def walked(found, path, rows):
    """(cost, rows) of a path of nodes that ends at the data end, from its own states."""
    x, said, out = found._noise(path[0]), [], []
    for i, (here, there) in enumerate(itertools.pairwise(path)):
        said.append(found.ask(x[:, None], np.array([here]))[:, 0])
        operands = [x, *said[-found.options.history :]]
        A = torch.stack(operands, -1).reshape(-1, len(operands)).numpy()
        family = rows(path[: i + 1], len(operands) - 1)
        w = least_squares(A, found.X[:, there].reshape(-1).numpy(), family, there)
        out.append(w)
        x = torch.from_numpy(A @ w).reshape(x.shape)
    return float(((x - found.X[:, 0]) ** 2).mean()), out


@pytest.mark.parametrize(
    "rows, history", [("free", 9), ("free", 2), ("consistent", 9), ("dpmpp_2m", 9), ("unipc", 9)]
)
def test_with_room_for_every_path_it_finds_the_best_of_all(rows, history):
    found = paths_of(rows, targets(), [1, 2, 3], history=history)
    for k in (1, 2, 3):
        path, cost = found.ends[k]
        every = [[*nodes, 0] for nodes in itertools.combinations(range(5, 0, -1), k)]
        costs = {tuple(nodes): walked(found, nodes, found.rows) for nodes in every}
        best = min(c for c, _ in costs.values())
        assert cost == pytest.approx(best, rel=1e-6)
        own, solved = costs[path.nodes]
        assert own == pytest.approx(best, rel=1e-6)
        for w, expected in zip(path.rows, solved, strict=True):
            assert np.abs(w - expected).max() < 1e-5 * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("rows", ["free", "consistent", "dpmpp_3m"])
def test_one_search_answers_every_budget_as_a_search_of_its_own(rows):
    every = paths_of(rows, targets(N=7), [1, 2, 3, 4], beam=1)
    for k in (1, 2, 3, 4):
        alone = paths_of(rows, targets(N=7), [k], beam=1)
        assert alone.ends[k][0].nodes == every.ends[k][0].nodes
        pairs = zip(alone.ends[k][0].rows, every.ends[k][0].rows, strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("solver", MULTISTEP)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_solvers_rows_are_those_of_its_plan(solver, schedule):
    """Whatever the plan keeps in slots: x after each row is the family's sum of x and what the
    model said.
    """
    model = subject(schedule)
    t = fs.grids.fine(model.schedule, 12)[::-1].copy()
    rows, nodes = _families.rows_of(solver, model, t), [12, 9, 8, 5, 2, 0]
    words = _families.words_of(solver)
    run = fs.Run(
        fs.solvers.SOLVERS[solver](model, t[nodes], **words),
        noise=noise(3),
        state_dtype=torch.float64,
    )
    x, said = run.x.clone(), []
    for i, (here, there) in enumerate(itertools.pairwise(nodes)):
        f = model(run.model_input, run.t)
        said.append(Denoiser(model, t, run.x, dtype=torch.float64)(run.x[:, None], [here])[:, 0])
        w = rows(nodes[: i + 1], i + 1).base[:, there]
        x = sum(c * v for c, v in zip(w.tolist(), [x, *said], strict=True))
        run.step(f)
        assert (x - run.x).abs().max() <= 1e-9 * (1 + run.x.abs().max())


@pytest.mark.parametrize("solver", ["heun", "dpmpp_2s", "euler_ancestral", "lcm"])
def test_a_solver_whose_rows_are_no_jumps_is_refused(solver):
    law, asked = subject(), []
    model = fs.Model(lambda x, t: asked.append(t), law.schedule, "x0")
    with pytest.raises(ValueError, match="fit: rows='.*once a step and draws no noise is accepted"):
        fit(model, noise(2), 2, rows=solver, teacher=5)
    assert not asked


@pytest.mark.parametrize("rows", ["free", "consistent", "dpmpp_2m", "unipc"])
@pytest.mark.parametrize(
    "schedule, prediction", [("edm", "x0"), ("flow", "flow"), ("vp", "eps"), ("edm", "edm")]
)
def test_a_plan_does_on_its_noises_what_the_search_says(rows, schedule, prediction):
    model, z = subject(schedule, prediction), noise(6)
    search = fit(model, z, 4, rows=rows, teacher=12, beam=2, amplitudes=(1.0, 1.2))
    target = metrics.run(search.teacher, model, z)
    for m, plan in search.plans.items():
        assert plan.nfe == m and len(search.indices[m]) == m + 1
        error = metrics.mse(metrics.run(plan, model, z), target)
        assert error == pytest.approx(search.error[m], rel=1e-6, abs=1e-14)
        assert fs.Plan.from_json(plan.to_json()) == plan
        said = plan.note["found"]
        assert said["method"] == "fit" and said["rows"] == rows and said["budget"] == m
        assert said["defect"] == plan.consistency() and max(said["weights"]) <= _paths.HEAVIEST
        assert (plan.consistency() > 1e-6) == (rows == "free" and plan.note["consistent"] is False)


def test_fitted_rows_are_nearer_to_the_teacher_than_times_alone():
    model, z, unseen = subject(D=64), noise(16, 64), noise(64, 64, seed=100)
    searches = {
        "free": fit(model, z, 6, teacher=16, beam=1),
        "consistent": fit(model, z, 6, teacher=16, beam=1, rows="consistent"),
        "euler": fit(model, z, 6, teacher=16, beam=1, rows="euler"),
        "oss": oss(model, z, 6, teacher=16),
    }
    target = metrics.run(searches["oss"].teacher, model, unseen)
    db = {
        name: metrics.psnr(metrics.run(s.plan, model, unseen), target)
        for name, s in searches.items()
    }
    assert db["free"] > db["oss"] + 15 and db["consistent"] > db["euler"] + 6


def test_guidance_is_searched_through_and_left_to_the_sampler():
    model, z = subject(), noise(4)
    shifted = fs.Model(lambda x, t, shift: model.fn(x, t) + shift, model.schedule, model.prediction)
    words = {"cond": {"shift": torch.full((4, 1), 0.1)}, "uncond": {"shift": torch.zeros(4, 1)}}
    words = {**words, "guidance": 2.0}
    search = fit(shifted, z, 3, teacher=8, beam=1, **words)
    assert search.plan.G == 1 and search.plan.note["found"]["guidance"] == 2.0
    error = metrics.mse(
        metrics.run(search.plan, shifted, z, **words),
        metrics.run(search.teacher, shifted, z, **words),
    )
    assert error == pytest.approx(search.error[3], rel=1e-6)


@pytest.mark.parametrize("start", ["free", "fixed"])
@pytest.mark.parametrize("beam, every", [(1, True), (1, False), (3, True), (3, False)])
def test_evaluations_are_counted_ahead(start, beam, every):
    search = fit(subject(), noise(3), 4, teacher=9, beam=beam, start=start, all_budgets=every)
    options = _paths.Options(range(1, 5) if every else [4], start, (1.0,), 9, beam, "mean", 0)
    spent = search.nfe - search.agreement_nfe - search.teacher.nfe
    assert spent == options.evaluations(9)
    if beam == 1 and every and start == "free":
        assert spent == 4 * 9 - 4 * 3 // 2


def test_a_fixed_start_begins_at_the_first_node():
    search = fit(subject(), noise(3), 3, teacher=9, start="fixed")
    assert all(nodes[0] == 0 for nodes in search.indices.values())


def test_log_errors_do_not_follow_one_strange_sample():
    """One sample's teacher is far from what any row reaches: its square rules the mean's rows."""
    X = targets(B=8, N=4) * 0.02
    X[-1] *= 500
    median = {}
    for aggregate in ("mean", "log", "median"):
        found = paths_of("free", X, [3], aggregate=aggregate)
        path = found.ends[3][0]
        median[aggregate] = float((path.x - X[:, 0]).square().mean(1).median())
    assert median["log"] < 0.5 * median["mean"]
    assert median["median"] <= median["mean"]


def test_judged_samples_choose_and_are_not_fitted_to():
    X = targets(B=6, N=4)
    other = X.clone()
    other[4:] = -X[4:]
    first, second = (paths_of("free", v, [1], judged=2) for v in (X, other))
    fits = [fit_of(found, path_at(found, 3)) for found in (first, second)]
    assert np.array_equal(fits[0][1], fits[1][1]) and not np.array_equal(fits[0][2], fits[1][2])
    whole = paths_of("free", X, [1])
    assert not np.array_equal(fit_of(whole, path_at(whole, 3))[1], fits[0][1])


def fit_of(found, path):
    """(operands, rows, costs) of its jumps."""
    operands = found._operands(path)
    dots = _paths.products(operands, found.X[:, : path.at]).numpy()
    return operands, *found._fit(path, dots)


def path_at(found, node):
    x = found._noise(node)
    said = found.ask(x[:, None], np.array([node]))[:, 0]
    return _paths.Path((node,), x, 1.0, (), (said,))


def test_no_row_is_heavy():
    """Least squares alone would weigh the difference of two near predictions by hundreds."""
    found = paths_of("free", targets(), [1])
    path = path_at(found, 4)
    near = path.said[0] + 1e-4 * targets()[:, 1]
    operands, w, cost = fit_of(found, path._replace(said=(*path.said, near)))
    assert np.abs(w[1:]).sum(0).max() <= _paths.HEAVIEST and np.isfinite(cost).all()
    A = torch.stack(operands, -1).reshape(-1, 3).numpy()
    alone = np.linalg.lstsq(A, found.X[:, 1].reshape(-1).numpy(), rcond=None)[0]
    assert np.abs(alone[1:]).sum() > 10 * _paths.HEAVIEST


def test_sums_do_not_depend_on_the_samples_behind_a_block():
    """Blocks of 16 samples are summed alone."""
    x, X = noise(48), targets(B=48)
    whole = _paths.products([x, 2 * x], X)
    assert torch.equal(whole[:16], _paths.products([x[:16], 2 * x[:16]], X[:16]))


@pytest.mark.parametrize("every", [True, False])
def test_a_model_whose_answers_overflow_is_refused(every):
    model = subject()
    wild = fs.Model(lambda x, t: model.fn(x, t) * 1e200, model.schedule, "x0")
    teacher = fs.solvers.dpmpp_3m(model, fs.grids.fine(model.schedule, 8)).with_note(solver="fine")
    with pytest.raises(ValueError, match="evaluations every jump overflows; a model with bounded"):
        fit(wild, noise(3), 3, teacher=teacher, all_budgets=every)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_state_dtypes(dtype):
    search = fit(subject(), noise(4).float(), 3, teacher=8, beam=1, state_dtype=dtype)
    assert all(np.isfinite(error) for error in search.error.values())


@pytest.mark.parametrize(
    "words, sentence",
    [
        ({"rows": "any"}, "fit: rows='any'; 'free' or 'consistent' or 'ddim'"),
        ({"beam": 0}, "fit: beam=0; an integer of at least 1 is needed"),
        ({"history": 1.5}, "fit: history=1.5; an integer of at least 1 is needed"),
        ({"aggregate": "joint"}, "fit: aggregate='joint'; 'mean' or 'log' or 'median'"),
        ({"judged": 1.0}, "fit: judged=1.0; a share of at least 0 and below 1"),
        ({"judged": "half"}, "fit: judged='half'; a share of at least 0 and below 1"),
        ({"judged": float("nan")}, "fit: judged=nan; a share of at least 0 and below 1"),
        ({"amplitudes": ()}, "fit: amplitudes=.*one or more finite factors above 0"),
        ({"amplitudes": 1.0}, "fit: amplitudes=1.0; one or more finite factors above 0"),
        ({"amplitudes": (1.0, -1.0)}, "fit: amplitudes=.*one or more finite factors above 0"),
        ({"start": "low"}, "fit: start='low'; 'fixed' or 'free' is accepted"),
        ({"budget": 40}, "fit: budget=40 on a teacher grid of 8 steps"),
        ({"guidance": 2.0}, "fit: one of guidance and uncond is given"),
        ({"z": noise(2) / 0}, "fit: z holds a number that is not finite"),
        ({"model": 3}, "fit: the model is a int; an fs.Model is needed"),
    ],
)
def test_bad_input_is_one_sentence(words, sentence):
    given = {"model": subject(), "z": noise(2), "budget": 2, "teacher": 8} | words
    with pytest.raises((ValueError, TypeError), match=sentence):
        fit(given.pop("model"), given.pop("z"), given.pop("budget"), **given)
