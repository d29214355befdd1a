"""The teacher of a search: near the truth on every schedule, its agreement with its double
measured, kept, counted and said.
"""

import itertools
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_oss import SCHEDULES, problem

import fastsample as fs
from fastsample import grids, metrics
from fastsample.models.analytic import GaussianMixture
from fastsample.optimize import oss
from tests.cases import louder

SD = fs.schedules.DiscreteVP.scaled_linear()
EMBEDDED = {
    "EDM": (fs.schedules.EDM(0.002, 80.0), "x0", grids.karras),
    "DiscreteVP": (SD, "eps", grids.karras),
    "Flow": (fs.schedules.Flow(), "flow", grids.uniform_half_log_snr),
    "Flow(3)": (fs.schedules.Flow(3.0), "flow", grids.uniform_half_log_snr),
}


@pytest.mark.parametrize("case", list(EMBEDDED))
def test_the_default_is_within_60_dB_of_the_truth(case):
    """The embedded model; the truth is a grid three times as fine, 85 dB or more from one of 500
    steps.
    """
    schedule, prediction, spaced = EMBEDDED[case]
    model, cond = fs.models.fashion(schedule, prediction), {"label": torch.tensor([7])}
    z = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(3))
    found = oss(model, z, 1, start="fixed", cond=cond)
    truth = metrics.run(fs.solvers.dpmpp_3m(model, spaced(schedule, 120)), model, z, cond=cond)
    assert metrics.psnr(metrics.run(found.teacher, model, z, cond=cond), truth) >= 60
    assert found.agreement >= 60
    assert len(found.grid) == 41 and np.isin(found.grid, found.teacher.note["times"]).all()


ON = {**SCHEDULES, "trig": fs.schedules.TrigFlow(0.5), "zero snr": SD.zero_terminal_snr()}


def moved(schedule="vp", B=6, D=5):
    """(model whose answers its conditions move, noise, words of a guided search)."""
    draw = np.random.default_rng(1)
    law = GaussianMixture(draw.standard_normal((3, D)), np.ones(3), 0.5).model(ON[schedule], "x0")
    z = torch.tensor(draw.standard_normal((B, D)))
    fn = lambda x, t, shift: law.fn(x, t) + shift
    model = fs.Model(fn, schedule=law.schedule, prediction="x0")
    far = torch.linspace(-1, 1, B, dtype=torch.float64)[:, None]
    return model, z, {"cond": {"shift": far}, "uncond": {"shift": 0 * far}, "guidance": 1.5}


CASES = (("flow", False), ("vp", True), ("trig", True), ("zero snr", False), ("edm", True))
ASKED = {
    "default": lambda model: None,
    "steps": lambda model: 12,
    "list": lambda model: grids.uniform(model.schedule, 20),
    "coarse list": lambda model: grids.uniform(model.schedule, 4).tolist(),
    "heun": lambda model: fs.solvers.heun(model, grids.karras(model.schedule, 6)),
    "unipc, as made for diffusers": lambda model: fs.solvers.unipc(
        model, grids.karras(model.schedule, 9), order=2, compat="diffusers"
    ),
    "guided plan": lambda model: fs.guidance.guided(
        fs.solvers.dpmpp_2m(model, grids.exponential(model.schedule, 9)), interval=(-9, 3)
    ),
}


@pytest.mark.filterwarnings("ignore:oss")
@pytest.mark.parametrize(
    "asked, schedule, every", [(name, *case) for name, case in zip(ASKED, itertools.cycle(CASES))]
)
def test_agreement_is_that_of_the_end_points_and_the_cost_is_exact(asked, schedule, every):
    model, z, words = moved(schedule)
    teacher, M, rows = ASKED[asked](model), 3, []
    fn = lambda x, t, shift: (rows.append(len(x)), model.fn(x, t, shift))[1]
    counted = fs.Model(fn, schedule=model.schedule, prediction="x0")
    found = oss(counted, z, M, teacher=teacher, start="fixed", all_budgets=every, **words)
    N, T, A = len(found.grid) - 1, found.teacher.nfe, found.agreement_nfe
    assert sum(rows) / 2 / len(z) == found.nfe  # two branches
    spent = T + A + ((M - 1) * N - M * (M - 1) / 2 if every else (M - 1) * (N - M + 1))
    assert found.nfe == pytest.approx(spent, rel=1e-15)
    few = {branch: {"shift": words[branch]["shift"][:4]} for branch in ("cond", "uncond")}
    few["guidance"] = words["guidance"]
    parts = 1 if isinstance(teacher, fs.Plan) else 2 ** round(np.log2(T / N))
    finer = finer_plan(found, model, 2 * parts)
    ends = [metrics.run(plan, model, z[:4], **few) for plan in (found.teacher, finer)]
    assert found.agreement == pytest.approx(metrics.psnr(*ends), abs=1e-6)
    assert finer.nfe >= 2 * T - 1
    assert found.plan.note["found"]["teacher"] == {
        "solver": found.teacher.note["solver"],
        "nfe": T,
        "agreement": found.agreement,
        "agreement_evaluations": A,
    }
    assert f"{found.agreement:.1f} dB" in repr(found)
    if isinstance(teacher, fs.Plan):
        wide = {k: v for k, v in found.teacher.dims.items() if k in "SGLKE"}
        assert (found.teacher.M == teacher.padded(**wide).M).all()
        assert pytest.approx((T + finer.nfe) * 4 / 6) == A
    else:
        assert np.isin(found.grid, found.teacher.note["times"]).all() and T <= 320
        assert found.agreement >= 60 or 2 * (T + 1) > 320


def finer_plan(found, model, parts):
    """The teacher's solver on the search's grid with every step cut in so many, by its note."""
    note = found.teacher.note
    grid = grids.refined(model.schedule, found.grid, parts)
    made = fs.solvers.SOLVERS[note["solver"]](model, grid, **note["arguments"])
    return fs.guidance.guided(made, interval=note["guidance"]["interval"])


def test_a_poor_teacher_is_said_once_and_a_good_one_is_not():
    model, z, grid = problem()
    sentence = r"oss: the teacher \(euler, 7 evaluations\) agrees to \d+\.\d dB with twice as many"
    with pytest.warns(UserWarning, match=sentence) as said:
        found = oss(model, z, 2, teacher=fs.solvers.euler(model, grid))
    assert len(said) == 1 and found.agreement < 45 and said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        oss(model, z, 2, teacher=grid)


def test_a_model_that_never_agrees_stops_at_the_limit():
    """The data are a spike at 1 and one at -1, so a sample near the edge between them lands on
    either by a trifle.
    """
    schedule = fs.schedules.EDM(0.002, 10.0)
    steep = fs.Model(lambda x, t: torch.sign(torch.sin(40 * x)), schedule=schedule, prediction="x0")
    z = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="45 dB"):
        found = oss(steep, z, 1, teacher=30)
    # Twice as many are 465; the last step starts at t_min and stays whole.
    assert found.teacher.nfe == 8 * 29 + 1 and found.agreement < 45


@pytest.mark.parametrize("change", ["numbers", "note"])
def test_a_plan_that_its_note_does_not_make_is_not_measured(change):
    model, z, grid = problem()
    plan = fs.solvers.dpmpp_2m(model, grid)
    if change == "numbers":  # learned, say
        M = plan.M.copy()
        M[3, 0, 0] *= 1.01
        plan = replace(plan, M=M)
    else:
        plan = plan.with_note(solver="mine")
    found = oss(model, z, 2, teacher=plan, amplitude=False)
    assert found.agreement is None and found.agreement_nfe == 0 and found.nfe == 7 + 2 * 7 - 1 - 1
    assert found.plan.note["found"]["teacher"]["agreement"] == "not measured"
    assert "was not measured" in repr(found)


def test_end_points_equal_to_the_last_bit_agree_to_inf_and_the_plan_is_saved(tmp_path):
    schedule = fs.schedules.EDM(sigma_max=16.0)
    model = fs.Model(lambda x, t: torch.zeros_like(x), schedule=schedule, prediction="x0")
    found = oss(model, torch.ones(2, 3), 1)
    assert found.agreement == np.inf
    assert fs.Plan.load(found.save(tmp_path)[0]).note["found"]["teacher"]["agreement"] == "inf"


def test_progress_is_exact_when_the_teacher_grows(capsys):
    model, z, grid = problem()
    found = oss(model, z, 3, teacher=grid, progress=True)
    assert found.teacher.nfe > 7
    total = round(found.nfe * len(z))
    said = capsys.readouterr().err
    assert f"{total}/{total}" in said and f"teacher agrees to {found.agreement:.1f} dB" in said


def test_find_teacher_takes_the_grid_of_the_schedule():
    usual = {"flow": grids.uniform_half_log_snr, "vp": grids.karras, "edm": grids.karras}
    for schedule, spaced in usual.items():
        model, z, _ = problem(schedule, "x0", std=0.5)
        plan, agreement, _ = metrics.find_teacher(model, z, nfe=20)
        assert agreement >= 60 and plan.note["times"] == spaced(model.schedule, plan.nfe).tolist()


@pytest.mark.parametrize("name", ["EDM", "Flow(3)", "trig"])
def test_one_step_does_not_agree_by_accident(name):
    """The step to sigma = 0 is halved as others are: the teacher is as near to the truth as to its
    double, 6 dB of a first order apart.
    """
    draw, schedule = np.random.default_rng(0), ON[name] if name in ON else EMBEDDED[name][0]
    model = GaussianMixture(draw.standard_normal((3, 5)), np.ones(3), 0.3).model(schedule, "x0")
    z = torch.tensor(draw.standard_normal((4, 5)))
    found = oss(model, z, 1, teacher=[schedule.t_max, schedule.t_zero])
    truth = metrics.run(fs.solvers.dpmpp_3m(model, grids.fine(schedule, 300)), model, z)
    assert 45 <= found.agreement <= 6 + metrics.psnr(metrics.run(found.teacher, model, z), truth)


TAUGHT = {
    "louder": lambda model, z, grid: louder(fs.solvers.dpmpp_2m(model, grid), 1.2),
    "quieter": lambda model, z, grid: louder(fs.solvers.heun(model, grid), 0.8),
    "found": lambda model, z, grid: oss(model, z, 5, teacher=grid, all_budgets=False).plan,
}


@pytest.mark.filterwarnings("ignore:oss")
@pytest.mark.parametrize("aggregate", ["joint", "median"])
@pytest.mark.parametrize("start", ["fixed", "free"])
@pytest.mark.parametrize("case", list(TAUGHT))
def test_a_teacher_that_scales_the_noise_is_met_where_the_search_says(case, start, aggregate):
    """A schedule that starts at the teacher's own label starts with the teacher's state there."""
    model, z, grid = problem("edm", "x0", B=4)
    teacher = TAUGHT[case](model, z, grid)
    assert abs(teacher.init_scale / teacher.sigma[1] - 1) > 0.01
    options = {"teacher": teacher, "start": start, "aggregate": aggregate}
    for amplitude in (False, True):
        found = oss(model, z, 3, amplitude=amplitude, **options)
        target = metrics.run(teacher, model, z)
        for m, plan in found.plans.items():
            error = metrics.mse(metrics.run(plan, model, z), target)
            scale = plan.note["found"]["amplitude"] * plan.sigma[1]
            assert error == pytest.approx(found.error[m], rel=1e-9)
            assert scale == pytest.approx(plan.init_scale, rel=1e-15)
            if start == "fixed" and not amplitude:
                assert plan.init_scale == pytest.approx(teacher.init_scale, rel=1e-15)


@pytest.mark.filterwarnings("ignore:oss")
def test_a_plan_teaches_on_times_that_are_not_the_grid_searched():
    """A part of its times; or the times of its own solver with every step cut."""
    model, z, _ = problem("vp", "v")
    fine = grids.karras(model.schedule, 24)
    plan, few = fs.solvers.dpmpp_2m(model, fine), fine[::3]
    found = oss(model, z, 3, teacher=plan, grid=few, start="fixed", amplitude=False)
    assert (found.grid == few).all() and (found.teacher.M == plan.M).all()
    target, end = (metrics.run(p, model, z, state_dtype=z.dtype) for p in (plan, found.plan))
    assert metrics.mse(end, target) == pytest.approx(found.error[3], rel=1e-9)
    assert found.nfe == 24 + found.agreement_nfe + 2 * 8 - 3
    double = fs.solvers.dpmpp_2m(model, grids.refined(model.schedule, fine, 2))
    ends = [metrics.run(p, model, z, state_dtype=z.dtype) for p in (plan, double)]
    assert found.agreement == pytest.approx(metrics.psnr(*ends), abs=1e-6)
    # What lies between the plan's times is reached where it is cut.
    coarse = fs.solvers.dpmpp_2m(model, fine[::3])
    between = grids.refined(model.schedule, fine[::3], 4)[[0, 3, 7, 14, 25, -1]]
    found = oss(model, z, 2, teacher=coarse, grid=between)
    assert found.teacher.nfe == len(grids.refined(model.schedule, fine[::3], 4)) - 1
    assert (found.grid == between).all()
    given, alone = oss(model, z, 2, grid=9), oss(model, z, 2, teacher=9)
    assert given.error == alone.error and (given.grid == alone.grid).all()


def test_a_grid_where_the_teacher_does_not_stand_is_refused():
    law, z, grid = problem("vp", "v", N=8)
    asked = []
    model = fs.Model(lambda x, t: asked.append(t), law.schedule, "v")
    plan = fs.solvers.dpmpp_2m(law, grid)
    for times in (11, grid[1:], grid[:-1], [*grid[:3], 0.123, grid[-1]]):
        with pytest.raises(ValueError, match="is not at every time.*are accepted"):
            oss(model, z, 2, teacher=plan, grid=times)
    with pytest.raises(ValueError, match="teacher=9 beside grid=.*Plan, or None, is accepted"):
        oss(model, z, 2, teacher=9, grid=grid)
    with pytest.raises(
        ValueError, match="grid=True; None, a whole number of steps, or a grid is acc"
    ):
        oss(model, z, 2, grid=True)
    with pytest.raises(ValueError, match="budget=3 on a teacher grid of 2 steps"):
        oss(model, z, 3, teacher=plan, grid=grid[[0, 4, 8]])
    assert not asked
