"""A first step taken from unit normal data instead of the model's first answer."""

import numpy as np
import pytest
import torch
from cases import same
from choosing import EDM, FLOW, net, plan_of, unit
from oracle.cases import CASES, SCHEDULES, grid, schedule_id
from oracle.linear import mp
from oracle.probe import follow

import fastsample as fs
from fastsample import schedules, solvers
from fastsample.guidance import guided
from fastsample.interop import k_diffusion
from fastsample.interop.diffusers import FsScheduler
from fastsample.plan import consistency

BY_ID = {case.id: case for case in CASES}
NAMES = ("euler", "heun", "dpm_2", "dpmpp_2m", "unipc-order=3-variant=bh2", "deis", "lms")
NAMES += ("ipndm", "sa_solver", "dpmpp_2s-r=0.3", "euler_ancestral", "pndm")
NAMES += ("heun-space=rho-s_churn=2.0-s_tmin=0.05-s_tmax=30.0",)
analytic = solvers.analytic_first_step


def without_the_first(loop):
    """The loop whose first evaluation is eps = y/sqrt(1 + rho²), y = x/alpha, or eps = x."""

    def started(points, x, ask, draw, **options):
        answered = False

        def answer(x, p):
            nonlocal answered
            if answered:
                return ask(x, p)
            answered = True
            if not p.alpha:
                return x, 0 * x
            eps = 1 / p.alpha / mp.sqrt(1 + p.rho**2)
            return x, ((1 - p.sigma * eps) / p.alpha) * x

        return loop(points, x, answer, draw, **options)

    return started


@pytest.mark.parametrize("schedule", SCHEDULES, ids=schedule_id)
@pytest.mark.parametrize("name", NAMES)
def test_every_solver_equals_its_loop_without_the_first_evaluation(name, schedule):
    case = BY_ID[name]
    silent = schedule.alpha(schedule.t_max) == 0
    for whole in {not silent} if "space" in case.options else {False, silent}:
        t = grid(schedule, 4, whole=whole)
        plan, loop = analytic(case.plan(schedule, t)), without_the_first(case.loop)
        found = follow(plan, schedule, loop, case.loop_options(schedule, t))
        assert found.agrees(), str(found)
        assert plan.nfe == case.plan(schedule, t).nfe - 1
        assert plan.remake() == plan and plan.note["consistent"] is False


def test_by_hand():
    """From 8 to 4 on EDM: x - 4 x/sqrt(65), kept as x0 = x - 8 x/sqrt(65); from sigma = 1 on Flow
    v = eps = x.
    """
    plan = analytic(solvers.dpmpp_2m(schedules.EDM(), [8.0, 4.0, 2.0, 0.0], prediction="eps"))
    x = plan.M[1] @ np.array([1.0, 0.0, plan.p[1], *[0.0] * (plan.W - 3)])
    assert x[:2] == pytest.approx([1 - 4 / 65**0.5, 1 - 8 / 65**0.5], abs=1e-15)
    words = {"prediction": "x0", "s_churn": 9.0}  # to 8 sqrt(2), where the model would be asked
    churned = analytic(solvers.heun(schedules.EDM(), [8.0, 4.0, 2.0, 0.0], **words))
    assert churned.sigma[1] == pytest.approx(128**0.5, rel=1e-15)
    assert churned.p[1] == pytest.approx(1 - (128 / 129) ** 0.5, rel=1e-14)
    flow = analytic(solvers.euler(schedules.Flow(), [1.0, 0.5, 0.0], prediction="flow"))
    assert flow.p[1] == 1.0 and flow.q[1] == 0.0 and flow.M[1, 0, flow.layout.m] == -0.5


def loop(x, levels, ask):
    """Heun's method in y with the first slope y/sqrt(1 + rho²), as diff-sampler has it."""
    for i, (s, t) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        d = x / (1 + s * s) ** 0.5 if i == 0 else (x - ask(x, s)) / s
        y = x + (t - s) * d
        x = x + (t - s) * (d + (y - ask(y, t)) / t) / 2 if t else y
    return x


def test_a_run_is_diff_samplers_loop_through_every_door():
    levels, asked = [80.0, 20.0, 3.0, 0.4, 0.0], []
    denoise = lambda x, s, **_: asked.append(s) or (0.3 * x).tanh()
    model = fs.Model(lambda x, t: denoise(x, t), schedules.EDM(), "x0")
    plan = analytic(solvers.heun(model, levels))
    z = unit(2, 5, dtype=torch.float64)
    wanted = loop(80.0 * z, levels, lambda x, s: denoise(x, s))
    asked.clear()
    x = fs.Sampler(plan, model)(noise=z)
    torch.testing.assert_close(x, wanted, rtol=1e-12, atol=1e-12)
    assert len(asked) == plan.nfe == 6
    run = fs.Run(plan, noise=z)
    assert run.t[0] == 20.0
    late = fs.Sampler(plan, model)(latent=80.0 * z, start=1)
    assert same(late, x)
    engine = fs.Engine(model, shape=(5,), state_dtype=torch.float64)
    tickets = [engine.submit(plan, noise=each) for each in z.split(1)]
    while not all(ticket.done for ticket in tickets):
        engine.tick()
    assert same(torch.cat([ticket.result() for ticket in tickets]), x)
    assert same(k_diffusion.k_sample(plan, denoise, 80.0 * z), x)


@pytest.mark.parametrize("solver", ["unipc", "heun", "dpmpp_2m_sde", "euler_cfgpp"])
def test_every_backend_and_mode_has_the_same_rows(solver):
    whole = plan_of(solver, model=FLOW, **({"s_churn": 0} if solver == "heun" else {}))
    plan, z = analytic(whole), unit(2, 7)
    x = fs.Sampler(plan, net)(noise=z, seed=1)
    torch.testing.assert_close(fs.Sampler(plan, net, backend="reference")(noise=z, seed=1), x)
    assert fs.Plan.from_bytes(plan.to_bytes()) == plan
    assert guided(plan).unguided() == plan
    words = {"cond": {"c": 0.5}, "uncond": {"c": 0.0}, "guidance": 3.0, "noise": z, "seed": 1}
    wide = analytic(guided(whole))
    assert not same(fs.Sampler(plan, net)(**words), x)
    assert same(fs.Sampler(wide, net)(**words), fs.Sampler(plan, net)(**words))
    kept = solvers.experts(solvers.held(plan, after=1), level=1.0)
    assert kept.remake() == kept and kept.nfe == plan.nfe + 1


def test_a_raw_output_says_what_the_prediction_does():
    """CFG++ of one branch is DDIM, and reads the output itself."""
    for model in (FLOW, EDM):
        raw, plain = (analytic(plan_of(name, model=model)) for name in ("euler_cfgpp", "euler"))
        z = unit(2, 7, dtype=torch.float64)
        x, same_x = (fs.Sampler(plan, net)(noise=z) for plan in (raw, plain))
        torch.testing.assert_close(x, same_x, rtol=1e-11, atol=1e-11)


def test_under_a_mask_the_unknown_part_is_that_of_a_run_without_one():
    plan, z = analytic(plan_of("unipc", model=FLOW, inpaint=True)), unit(2, 7)
    mask, known = torch.tensor([0.0, 0, 0, 1, 1, 1, 1]).expand(2, 7), unit(2, 7, seed=1)
    elementwise = lambda x, t: 0.2 * x.tanh()
    x = fs.Sampler(plan, elementwise)(noise=z, mask=mask, known=known)
    free = fs.Sampler(plan, elementwise)(noise=z)
    torch.testing.assert_close(x[:, :3], free[:, :3])
    torch.testing.assert_close(x[:, 3:], known[:, 3:])


def test_the_order_is_one_though_by_little_at_a_high_noise_level():
    """On N(0, 1/4) data, whose flow is known: x goes as sqrt(1/4 + sigma²)."""

    def off(plan):
        own, start = lambda s: np.hypot(0.5, s), np.hypot([0.5], plan.sigma[1])
        denoise = lambda x, a, s: x * (0.5 / own(s)) ** 2
        end = consistency.over_law(plan, start, denoise, None)
        return abs(float(end[0]) / own(plan.sigma[-1]) - 1.0)

    for top, lost in ((3.0, 2.0), (80.0, 4.0)):
        plans = [solvers.dpmpp_2m(EDM, np.geomspace(top, 0.1, n + 1)) for n in (64, 128)]
        exact, (coarse, fine) = [off(p) for p in plans], [off(analytic(p)) for p in plans]
        assert exact[0] / exact[1] == pytest.approx(4.0, rel=0.1)
        assert coarse / fine == pytest.approx(lost, rel=0.1)
    assert fine == pytest.approx(exact[1], rel=1e-2)
    note = analytic(plans[0]).note
    assert note["order"] == 1 and note["orders"][:2] == [0, 2]


def test_it_is_not_what_was_measured_of_its_solver():
    plan = plan_of("heun", 5, s_churn=0.0)
    assert "on the embedded model" in plan.describe()
    assert "on the embedded model" not in analytic(plan).describe()


def test_an_image_is_stepped_from_by_the_model():
    plan = analytic(plan_of("ipndm", model=FLOW))
    late = plan.remake(start=2)
    assert late.nfe == plan_of("ipndm", model=FLOW).remake(start=2).nfe
    assert late.remake() == plan and analytic(plan) == plan


def test_wrong_plans_are_refused():
    plan = plan_of("euler", 4, FLOW)
    for wrong, sentence in (
        (plan.remake(start=1), "the plan begins from an image; one that begins from noise is acc"),
        (plan_of("euler", 1, FLOW), "the plan makes 1 evaluation.s.; one that makes two or more"),
        (
            solvers.held(plan, before=1),
            "the plan holds before its first step; one that is held after this",
        ),
    ):
        with pytest.raises(ValueError, match=f"analytic_first_step: {sentence}"):
            analytic(wrong)
    held = solvers.held(analytic(plan), before=1)
    assert held.remake() == held
    with pytest.raises(fs.PlanError, match="the note's analytic: .* makes 1 evaluation"):
        plan_of("euler", 1, FLOW).with_note(analytic=True).remake()


def test_doors_tell_which_steps_ask():
    """k_sample's callback counts them by the grid; a pipeline asks before every step."""
    plan, told = analytic(plan_of("dpmpp_2m", 4)), []
    x = plan.init_scale * unit(2, 5)
    k_diffusion.k_sample(plan, lambda x, s: 0.3 * x, x, callback=told.append)
    assert [each["i"] for each in told] == [1, 2, 3]
    assert [float(each["sigma"]) for each in told] == pytest.approx(plan.note["grid"][1:4])
    with pytest.raises(ValueError, match="FsScheduler: the plan's first step asks no model"):
        FsScheduler.from_plan(plan)
