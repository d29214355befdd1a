"""Two experts: a high-noise model above a noise level, a low-noise one below, one plan."""

import diffusers
import numpy as np
import pytest
import torch
from cases import same
from choosing import EDM, FLOW, unit

import fastsample as fs
from fastsample import grids, schedules, solvers
from fastsample.model import Model

WAN = Model(None, schedules.Flow(shift=12.0), prediction="flow", time=1000)


def high(x, t):
    return 0.3 * x + 0.1


def low(x, t):
    return (0.2 * x).tanh() - 0.0001 * t.view(-1, 1)


def experts(name="dpmpp_2m", n=8, **words):
    plan = solvers.SOLVERS[name](WAN, grids.uniform(WAN.schedule, n))
    return solvers.experts(plan, **(words or {"boundary": 0.875}))


@pytest.mark.parametrize("name", ["euler", "heun", "unipc", "dpmpp_2s", "dpmpp_3m_sde"])
def test_the_model_of_a_row_is_that_of_the_time_it_is_told(name):
    plan, asked = experts(name), []
    models = [lambda x, t, k=k: asked.append((k, float(t[0]))) or 0.1 * x for k in (0, 1)]
    fs.Sampler(plan, models)(noise=unit(2, 8), seed=3)
    assert {k for k, _ in asked} == {0, 1} and len(asked) == plan.nfe
    assert all(k == int(t < 875.0) for k, t in asked)


def test_history_crosses_the_boundary_in_every_mode_and_loop():
    plan, z = experts(), unit(2, 8)
    first = plan.call.tolist().index(1)
    assert plan.program.rows[first].slots_read(plan.layout)  # the low model's first row reads it
    run = fs.Run(plan, noise=z)
    while not run.done:
        run.step((high, low)[run.call](run.model_input, run.t))
    assert same(fs.Sampler(plan, [high, low])(noise=z), run.x)
    one = lambda x, t: high(x, t) if t[0] >= 875.0 else low(x, t)
    plain = solvers.dpmpp_2m(WAN, grids.uniform(WAN.schedule, 8))
    assert same(fs.Sampler(plain, one)(noise=z), run.x)
    engine = fs.Engine([high, low], shape=(8,), capacity=2)
    tickets = [engine.submit(plan, noise=z[k : k + 1]) for k in range(2)]
    engine.run()
    assert same(torch.cat([ticket.result() for ticket in tickets]), run.x)
    with pytest.raises(
        TypeError, match=r"^Engine.submit: 1 model\(s\) for a plan that asks model 1"
    ):
        fs.Engine(high, shape=(8,)).submit(plan, seed=1)


@pytest.mark.parametrize("shift", [3.0, 12.0])
@pytest.mark.parametrize("boundary", [0.875, 0.9])
@pytest.mark.parametrize("n", [4, 40])
def test_the_switch_is_where_diffusers_wan_pipeline_has_it(shift, boundary, n):
    """It asks the first transformer where its timestep is boundary_ratio·1000 or more."""
    words = {"use_flow_sigmas": True, "flow_shift": shift}
    peer = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", **words)
    peer.set_timesteps(n)
    model = Model(None, schedules.Flow(shift=shift), prediction="flow", time=1000)
    plan = solvers.unipc(model, grids.from_sigmas(model.schedule, peer.sigmas))
    calls = solvers.experts(plan, boundary).call
    assert calls[1:-1].tolist() == [int(t < boundary * 1000) for t in peer.timesteps.tolist()]


@pytest.mark.parametrize(
    "model, boundary, told",
    [
        (FLOW, 0.9, 900.0),
        (Model(None, schedules.VP(), "eps", time=1000), 0.7, 700.0),
        (Model(None, schedules.DiscreteVP.linear(), "eps", time=1), 0.875, 875.0),
        (Model(None, schedules.TrigFlow(), "trigflow", time=1), 0.5, np.pi / 4),
    ],
    ids=["flow", "vp", "discrete", "trigflow"],
)
def test_a_boundary_is_a_share_of_what_a_model_is_told(model, boundary, told):
    plan = solvers.ddim(model, grids.uniform(model.schedule, 20))
    made = solvers.experts(plan, boundary)
    asking = made.call >= 0
    with np.errstate(divide="ignore"):
        at = np.log(plan.alpha[asking]) - np.log(plan.sigma[asking])
    times = model.times(model.schedule.time(at))
    assert (made.call[asking] == (times < told * (1 - 1e-9))).all()
    level = np.exp(made.note["experts"]["edge"])
    again = solvers.experts(plan, level=level)
    assert (again.call == made.call).all()
    assert float(model.schedule.label(model.schedule.time(-np.log(level)))) == pytest.approx(
        boundary * (1000 if told == 875.0 else float(model.schedule.label(model.schedule.t_max)))
    )


def test_a_point_at_the_boundary_is_the_high_noise_models():
    half = solvers.euler(FLOW, grids.from_sigmas(FLOW.schedule, [1.0, 0.9, 0.5, 0.0]))
    assert solvers.experts(half, 0.9).call.tolist() == [-1, 0, 0, 1, -1]
    assert solvers.experts(half, level=9.0).call.tolist() == [-1, 0, 0, 1, -1]


@pytest.mark.parametrize("name", ["euler", "unipc", "heun", "restart"])
@pytest.mark.parametrize("steps", [(3, 5), (1, 1), (2, 9)])
def test_steps_of_each_side_are_given_apart(name, steps):
    plan = experts(name, boundary=0.875, steps=steps)
    grid = np.array(plan.note["grid"])
    sigma = WAN.schedule.sigma(grid)
    assert len(grid) == sum(steps) + 1 and sigma[steps[0]] == pytest.approx(0.875, rel=1e-12)
    assert (grid[0], grid[-1]) == (1.0, 0.0)
    assert all(plan.call[(plan.call >= 0) & (plan.sigma > 0.8751)] == 0)
    assert all(plan.call[(plan.call >= 0) & (plan.sigma < 0.8751)] == 1)
    if name == "euler":
        assert plan.call.tolist() == [-1, *[0] * steps[0], *[1] * steps[1], -1]
        # the grid is even in t: so is either side
        for part in (grid[: steps[0] + 1], grid[steps[0] :]):
            np.testing.assert_allclose(np.diff(part), np.diff(part).mean(), rtol=1e-9)
    assert plan.remake() == plan


def test_parted_reads_a_grid_as_its_own_rule_makes_it():
    schedule = EDM.schedule
    grid = grids.karras(schedule, 12)
    made = grids.parted(schedule, grid, 3.0, (4, 6))
    assert len(made) == 11 and made[4] == pytest.approx(3.0, rel=1e-12) and made[-1] == 0.0
    seventh = made[:-1] ** (1 / 7)
    for part in (seventh[:5], seventh[4:]):
        np.testing.assert_allclose(np.diff(part), np.diff(part).mean(), rtol=1e-9)
    assert (made[0], made[-2]) == (grid[0], grid[-2])
    with pytest.raises(ValueError, match="level: 0.001; a noise level sigma/alpha between"):
        grids.parted(schedule, grid, 0.001, (4, 6))


def test_remake_keeps_the_experts():
    plan = experts("unipc", boundary=0.875, steps=(4, 6))
    late = plan.remake(start=3)
    assert late.call.tolist() == [-1, 0, *[1] * 6, -1]
    assert late.remake() == plan and plan.remake(strength=0.5).call.tolist() == [-1, *[1] * 5, -1]
    image = unit(2, 8)
    got = fs.Sampler(plan, [high, low])(latent=image, strength=0.5, seed=1)
    assert same(got, fs.Sampler(plan.remake(strength=0.5), [high, low])(latent=image, seed=1))
    assert fs.Plan.from_bytes(plan.to_bytes()).remake() == plan
    assert solvers.experts(plan, 0.7).remake().note["experts"]["boundary"] == 0.7
    broken = plan.with_note(experts={"edge": "high"})
    with pytest.raises(fs.PlanError, match="remake: the note's experts"):
        broken.remake()


@pytest.mark.parametrize(
    "words, sentence",
    [
        ({}, "boundary=None, level=None; one of them"),
        ({"boundary": 0.9, "level": 2.0}, "boundary=0.9, level=2.0; one of them"),
        ({"boundary": 1.0}, "experts: boundary = 1.0; a number between 0 and 1"),
        ({"boundary": 875}, "experts: boundary = 875; a number between 0 and 1"),
        ({"level": -1.0}, "experts: level = -1.0; a number between 0"),
        ({"boundary": 0.01}, "no row of the plan stands below the boundary, sigma/alpha = 0.01"),
        ({"boundary": 0.9, "steps": 4}, r"steps = 4; \(high, low\)"),
        ({"boundary": 0.9, "steps": (0, 4)}, r"steps = \(0, 4\); \(high, low\)"),
    ],
)
def test_wrong_words_are_refused(words, sentence):
    plan = solvers.euler(WAN, grids.uniform(WAN.schedule, 4))
    with pytest.raises(ValueError, match=sentence) as error:
        solvers.experts(plan, **words)
    assert "\n" not in str(error.value)


def test_plans_that_cannot_say_it_are_refused():
    edm = solvers.euler(EDM, grids.karras(EDM.schedule, 4))
    with pytest.raises(ValueError, match="whose times have no end; level="):
        solvers.experts(edm, 0.9)
    assert solvers.experts(edm, level=5.0).call.tolist() == [-1, 0, 0, 1, 1, -1]
    image = solvers.euler(WAN, grids.uniform(WAN.schedule, 4), start=1)
    with pytest.raises(ValueError, match="begins from an image"):
        solvers.experts(image, 0.9, steps=(1, 2))


def test_models_with_words_are_held_to_the_plan():
    other = Model(low, schedules.Flow(shift=5.0), prediction="flow", time=1000)
    own = [Model(fn, WAN.schedule, "flow", time=1000, model_id=fn.__name__) for fn in (high, low)]
    x = fs.Sampler(experts(), own)(noise=unit(2, 8))
    assert same(x, fs.Sampler(experts(), [high, low])(noise=unit(2, 8)))
    with pytest.raises(ValueError, match="the plan was made for schedule"):
        fs.Sampler(experts(), [own[0], other])


def test_gradients_go_through_both():
    plan, z = experts("euler", 4), unit(2, 8)
    leaf = z.clone().requires_grad_()
    x = fs.Sampler(plan, [high, low], differentiable=True)(noise=leaf)
    assert same(x.detach(), fs.Sampler(plan, [high, low], backend="reference")(noise=z))
    assert torch.autograd.grad(x.sum(), leaf)[0].abs().max() > 0
