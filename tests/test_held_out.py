"""A search beside the schedules made by hand: the best of any deterministic solver on noise held
out, counted apart, and said honestly.
"""

import numpy as np
import pytest
import torch
from test_oss import problem, taught

import fastsample as fs
from fastsample import metrics
from fastsample.models.analytic import GaussianMixture
from fastsample.optimize import oss

pytestmark = pytest.mark.filterwarnings("ignore:oss. the teacher")  # these are of few steps
EDM = [fs.schedules.EDM(), [4.0, 2.0, 1.0, 0.5]]
MADE = {name: make(*EDM, prediction="x0") for name, make in fs.solvers.SOLVERS.items()}
# without noise; ddim is euler
DETERMINISTIC = [
    name for name, plan in MADE.items() if not plan.L and fs.solvers.SOLVERS[name].usual
]
DETERMINISTIC.remove("ddim")


def by_hand(model, z, M, target, solvers=DETERMINISTIC):
    """{(solver, grid): dB} by the definition, one after the other, on a schedule where no step
    starts at alpha = 0.
    """
    figures = {}
    for name in solvers:
        for n in range(1, M + 1):
            for label, grid in metrics.hand_made(model.schedule, n).items():
                plan = fs.solvers.SOLVERS[name](model, grid)
                if plan.nfe == M:
                    figures[name, label] = metrics.psnr(metrics.run(plan, model, z), target)
    return figures


@pytest.mark.parametrize(
    "solver, M",
    [
        (None, 1),
        pytest.param(None, 2, marks=pytest.mark.soak),
        (None, 3),
        (None, 4),
        ("unipc", 3),
        ("heun", 1),
        ("heun", 4),
    ],
)
def test_the_best_by_hand_is_the_best_of_all(M, solver, monkeypatch):
    monkeypatch.setattr(metrics, "STARTS", (5.0,))
    model, z, grid = problem("vp", "eps", B=4)
    target = metrics.run(taught(model, grid), model, z)
    figures = by_hand(model, z, M, target, [solver] if solver else DETERMINISTIC)
    best = metrics.best_hand_made(model, z, M, target, solver=solver)
    found = best.note["found"]
    assert found["psnr"] == max(figures.values()) == figures[found["solver"], found["grid"]]
    assert found["psnr"] == metrics.psnr(metrics.run(best, model, z), target)
    assert best.nfe == M and best.note["solver"] == found["solver"]
    plans = [plan for _, _, plan in metrics.by_hand(model, M, solver)]
    tables = {plan.M.tobytes() + plan.t.tobytes() for plan in plans}
    assert found["evaluations"] == M * 4 * (len(tables) + min(5, len(tables)))


@pytest.mark.parametrize("solver, M", [("dpmpp_3s", 13), ("heunpp2", 12), ("rk", 13), ("rk", 17)])
def test_solvers_of_many_stages_are_compared(solver, M):
    """3 (n - 1) + 1 evaluations of n steps, 3 (n - 2) + 3, 4 (n - 1) + 1."""
    model, *_ = problem("vp", "eps", B=4)
    found = metrics.by_hand(model, M, solver)
    assert found and all(plan.nfe == M for _, _, plan in found)


def test_what_makes_no_such_plan_is_named():
    model, z, _ = problem()
    for solver, sentence in (
        ("euler_ancestral", "euler_ancestral makes no plan of 3 evaluations without noise"),
        ("rk4", "solver='rk4'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            metrics.best_hand_made(model, z, 3, z, solver=solver)


@pytest.mark.parametrize("guided", [False, True])
def test_every_budget_is_compared_and_counted_apart(guided, monkeypatch):
    """Held-out noise b has the words of sample b mod B; float64, so that the figures are those of
    the definition.
    """
    monkeypatch.setattr(metrics, "STARTS", (None,))
    law, z, grid = problem("edm", "x0", B=2)
    rows = []

    def fn(x, t, shift):
        rows.append(len(x))
        return law.fn(x, t) + shift

    model = fs.Model(fn, schedule=law.schedule, prediction="x0")
    fresh = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    shift = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    words, given = {"cond": {"shift": shift}}, {"cond": {"shift": shift[torch.arange(5) % 2]}}
    if guided:
        for own in (words, given):
            own |= {"uncond": {"shift": 0 * own["cond"]["shift"]}, "guidance": 1.5}
    alone = oss(model, z, 3, teacher=taught(model, grid), **words)
    spent = sum(rows)
    assert alone.compared == {} and alone.compared_nfe == 0 and "not compared" in repr(alone)
    assert all(plan.note["found"]["compared"] == "not compared" for plan in alone.plans.values())
    rows.clear()
    found = oss(model, z, 3, teacher=taught(model, grid), held_out=fresh, **words)
    assert sum(rows) == (1 + guided) * len(z) * (found.nfe + found.compared_nfe)
    assert spent == (1 + guided) * len(z) * found.nfe
    assert found.error == alone.error and list(found.compared) == [1, 2, 3]
    target = metrics.run(found.teacher, model, fresh, **given)
    for m, one in found.compared.items():
        ours = metrics.psnr(metrics.run(found.plans[m], model, fresh, **given), target)
        theirs = metrics.psnr(metrics.run(one.plan, model, fresh, **given), target)
        assert one.found == pytest.approx(ours, abs=1e-9)
        assert one.by_hand == pytest.approx(theirs, abs=1e-9)
        assert one.plan.nfe == m and one.samples == 5 and one.beats == (one.found > one.by_hand)
        names = ("solver", "grid", "by_hand", "found", "beats", "samples")
        noted = {name: getattr(one, name) for name in names}
        assert found.plans[m].note["found"]["compared"] == noted
        held = found.plans[m].note["found"]["held_out"]
        each = metrics.psnr_each(metrics.run(found.plans[m], model, fresh, **given), target)
        quartiles = np.quantile(10 ** (-each / 10), [0.75, 0.5, 0.25])
        assert held["psnr"] == pytest.approx([each.mean(), *-10 * np.log10(quartiles)], abs=1e-9)
        assert held["samples"] == 5 and held["pooled"] == one.found
        assert f"{m}: {one}" in repr(found)
        assert ("does not beat" in str(one)) == (not one.beats)


def test_one_budget_is_compared_alone(monkeypatch):
    monkeypatch.setattr(metrics, "STARTS", (5.0,))
    model, z, grid = problem("flow", "flow")
    fresh = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = oss(model, z, 3, teacher=taught(model, grid), all_budgets=False, held_out=fresh)
    assert list(found.compared) == [3]


def test_unipc_by_hand_beats_the_found_euler_plan_of_8_evaluations(monkeypatch):
    """The embedded model: about 32 dB against 30. The plan found says so itself."""
    monkeypatch.setattr(metrics, "STARTS", (40.0,))  # where the best of them all starts
    few = {name: fs.solvers.SOLVERS[name] for name in ("euler", "unipc")}
    monkeypatch.setattr(fs.solvers, "SOLVERS", few)
    model, cond = fs.models.fashion(), {"label": torch.arange(2)}
    z, fresh = torch.randn(2, 2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    teacher = fs.solvers.dpmpp_3m(model, fs.grids.fine(model.schedule, 40))
    found = oss(model, z, 8, teacher=teacher, all_budgets=False, cond=cond, held_out=fresh)
    one = found.compared[8]
    assert one.by_hand > one.found and not one.beats and one.solver == "unipc"
    assert "does not beat" in repr(found) and found.plan.note["found"]["compared"]["beats"] is False


BAD = {
    "a list": ([1.0], "held_out is a list"),
    "another shape": (torch.zeros(2, 4), r"held_out is float32 \[2, 4\]"),
    "integers": (torch.ones(2, 5).long(), r"held_out is int64 \[2, 5\]"),
    "none at all": (torch.zeros(0, 5), r"\[0, 5\]"),
    "not a number": (torch.full((2, 5), np.nan), "not finite"),
    "no batch": (torch.zeros(5), r"float32 \[5\]"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_noise_is_refused_before_the_model_is_asked(case):
    held_out, sentence = BAD[case]
    _, z, _ = problem()
    asked = []
    model = fs.Model(lambda x, t: asked.append(1), schedule=fs.schedules.EDM(), prediction="x0")
    with pytest.raises(ValueError, match=sentence) as caught:
        oss(model, z, 2, held_out=held_out)
    assert "\n" not in str(caught.value) and not asked


def test_noise_that_was_searched_with_is_refused():
    model, z, _ = problem()
    with pytest.raises(ValueError, match="noise 1 of held_out is one of those searched with"):
        oss(model, z, 2, held_out=torch.stack([z[0] + 1, z[2]]))


def test_a_level_where_the_model_cannot_answer_costs_no_search(monkeypatch):
    """Schedules by hand ask at levels that the search never asks at: those are at -inf dB and the
    others are compared.
    """
    monkeypatch.setattr(metrics, "STARTS", (None, 5.0))
    law, z, _ = problem("edm", "x0")
    fn = lambda x, t: torch.where(t[:, None] > 19.9, torch.nan, law.fn(x, t))
    mended = fs.Model(fn, schedule=law.schedule, prediction="x0")
    fresh = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    grid = fs.grids.karras(law.schedule, 9)[1:]
    found = oss(mended, z, 2, teacher=grid, all_budgets=False, held_out=fresh)
    for m, one in found.compared.items():
        target = metrics.run(found.teacher, law, fresh)
        low = {k: v for k, v in by_hand(law, fresh, m, target).items() if "from 5" in k[1]}
        assert one.by_hand == max(low.values()) == low[one.solver, one.grid]
        assert np.isfinite(one.found)
    assert metrics.reached(fs.solvers.euler(law, [20.0, 0.0]), mended, fresh, fresh) == -np.inf


ENDLESS = [
    fs.schedules.Flow(3.0),
    fs.schedules.TrigFlow(),
    fs.schedules.DiscreteVP.linear().zero_terminal_snr(),
]


@pytest.mark.parametrize("schedule", ENDLESS, ids=lambda s: type(s).__name__)
def test_grids_that_a_model_cannot_start_on_are_left_out(schedule, monkeypatch):
    """eps at alpha = 0 says nothing of x0: a search from below is compared with the schedules from
    below.
    """
    monkeypatch.setattr(metrics, "STARTS", (None, 5.0))
    model = GaussianMixture(np.eye(5)[:2], np.ones(2), 0.5).model(schedule, "eps")
    z, grid = torch.eye(5, dtype=torch.float64), fs.grids.fine(schedule, 20)[4:]
    found = oss(model, z[:3], 2, teacher=grid, all_budgets=False, held_out=z[3:] - 1)
    assert np.isfinite(found.compared[2].by_hand) and "from 5" in found.compared[2].grid
    with pytest.raises(ValueError, match="alpha = 0"):
        fs.solvers.euler(model, fs.grids.fine(schedule, 20))


@pytest.mark.parametrize(
    "bad",
    [{"nfe": 0}, {"nfe": 1.5}, {"nfe": True}, {"screen": 0}, {"screen": "4"}, {"finalists": -1}],
)
def test_counts_are_refused_before_the_model_is_asked(bad):
    model, z, _ = problem()
    asked = fs.Model(lambda x, t: pytest.fail("asked"), schedule=model.schedule, prediction="x0")
    (name, value), *_ = bad.items()
    said = f"^best_hand_made: {name}={value!r}; a whole number of at least 1 is accepted$"
    with pytest.raises(ValueError, match=said):
        metrics.best_hand_made(asked, z, **({"nfe": 2, "target": z} | bad))
    said = "^best_hand_made: 6 end points for 3 noises; one for each is accepted$"
    with pytest.raises(ValueError, match=said):
        metrics.best_hand_made(asked, z, 2, torch.cat([z, z]))
