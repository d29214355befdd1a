"""Rows that ask the model and leave the state where it is."""

import pytest
import torch
from cases import same
from choosing import FLOW, net, plan_of, unit

import fastsample as fs
from fastsample import grids, schedules, solvers
from fastsample.model import Model

KINDS = [
    (Model(None, schedules.VP(), "eps", time=1000)),
    (Model(None, schedules.DiscreteVP.linear(), "v")),
    (Model(None, schedules.TrigFlow(), "x0")),
    (Model(None, schedules.EDM(), "x0", input_scale="vp")),
]


@pytest.mark.parametrize("solver", ["unipc", "heun", "dpmpp_2m_sde"])
def test_they_change_nothing_but_the_calls(solver):
    plan = plan_of(solver, model=FLOW, **({"s_churn": 0} if solver == "heun" else {}))
    z = unit(2, 7)
    held = solvers.held(plan, before=2, after=3)
    assert held.nfe == plan.nfe + 5 and held.remake() == held and held.program != plan.program
    assert same(fs.Sampler(held, net)(noise=z, seed=1), fs.Sampler(plan, net)(noise=z, seed=1))
    assert held.t[:3, 0].tolist() == [1000.0] * 3 and (held.t[-5:, 0] == 0.0).all()
    assert held.consistency() == pytest.approx(plan.consistency(), abs=1e-14)
    late = held.remake(start=4)
    assert late.nfe == plan.remake(start=4).nfe + 5 and late.remake() == held
    twice = solvers.held(solvers.held(plan, before=2), after=3)
    assert twice == held and solvers.held(plan) == plan
    assert fs.Plan.from_bytes(held.to_bytes()).remake() == held


@pytest.mark.parametrize(
    "model", KINDS, ids=lambda m: f"{type(m.schedule).__name__}-{m.prediction}"
)
def test_on_any_schedule_a_model_with_words_is_told_its_time(model):
    grid, z = grids.uniform_half_log_snr(model.schedule, 4), unit(2, 7)
    plan, asked = solvers.dpmpp_2m(model, grid), []
    held = solvers.held(plan, before=1, after=2)
    own = Model(
        lambda x, t: asked.append((x.clone(), t[0])) or net(x, t),
        model.schedule,
        model.prediction,
        model.time,
        model.input_scale,
    )
    x = fs.Sampler(held, own)(noise=z)
    assert same(x, fs.Sampler(plan, net)(noise=z)) and len(asked) == 7
    for k, t in ((0, grid[0]), (1, grid[0]), (5, grid[-1]), (6, grid[-1])):
        c, told = model.scales([t])[0], model.times([t])[0]
        assert float(asked[k][1]) == pytest.approx(float(told), rel=1e-6)
        torch.testing.assert_close(asked[k][0], (plan.init_scale * z if k < 2 else x) * c)


def test_a_preview_is_what_is_known_of_the_data():
    run, seen = (
        fs.Run(solvers.held(plan_of("euler", 4, FLOW), before=1, after=1), noise=unit(2, 7)),
        [],
    )
    while not run.done:
        run.step(net(run.model_input, run.t))
        seen.append(run.x0.clone())
    assert same(seen[0], seen[1]) and same(seen[-1], run.x)
    early = solvers.euler(FLOW, grids.from_sigmas(FLOW.schedule, [1.0, 0.6]))
    run = fs.Run(solvers.held(early, after=1), noise=unit(2, 7))
    for _ in range(2):
        f = net(run.model_input, run.t)
        run.step(f)
    torch.testing.assert_close(run.x0, run.x - 0.6 * f)


def test_wrong_words_are_refused():
    plan = plan_of("euler", 4, FLOW)
    for words in ({"before": -1}, {"after": 1.5}, {"before": True}):
        with pytest.raises(ValueError, match="held: before = .*whole numbers from 0 up"):
            solvers.held(plan, **words)
    model = Model(None, schedules.Flow(), prediction="flow", time="log_sigma")
    ends = solvers.euler(model, grids.from_sigmas(model.schedule, [0.9, 0.5, 0.0]))
    with pytest.raises(ValueError, match="time gives -inf"):
        solvers.held(ends, after=1)
    found = fs.Plan(**plan.numbers(), note={})
    with pytest.raises(ValueError, match="held: the plan's note does not name"):
        solvers.held(found, after=1)
    with pytest.raises(fs.PlanError, match="remake: the note's held"):
        solvers.held(plan, after=1).with_note(held="long").remake()
