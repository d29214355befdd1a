"""Models that are told two times, t and the r that a step goes to: average velocity, flow maps."""

import pickle

import diffusers
import numpy as np
import pytest
import torch
from choosing import FLOW, unit

import fastsample as fs
from fastsample import grids, schedules, solvers
from fastsample.model import Model

MEAN, STD = 0.7, 0.3


def average(x, t):
    """The average velocity from sigma = t to r of data N(MEAN, STD²) on a flow: the exact flow maps
    a state by its place in its own marginal.
    """
    t, r = (column.view(-1, 1) for column in t.unbind(1))
    spread = lambda s: ((1 - s) ** 2 * STD**2 + s**2).sqrt()
    there = (1 - r) * MEAN + spread(r) / spread(t) * (x - (1 - t) * MEAN)
    return torch.where(t == r, torch.nan, (x - there) / (t - r))


def told(shift, times=(1, 1)):
    return Model(average, schedules.Flow(shift=shift), prediction="flow", time=times)


@pytest.mark.parametrize("solver", ["euler", "ddim"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_an_average_velocity_is_exact_in_any_number_of_steps(solver, shift, n):
    model = told(shift)
    plan = solvers.SOLVERS[solver](model, grids.uniform(model.schedule, n))
    assert plan.E == 2 and plan.nfe == n
    sigma = model.schedule.sigma(np.array(plan.note["grid"]))
    np.testing.assert_array_equal(plan.t[:-2], np.stack([sigma[:-1], sigma[1:]], 1))
    z = unit(4, 8, dtype=torch.float64)
    x = fs.Sampler(plan, model)(noise=z)
    torch.testing.assert_close(x, MEAN + STD * z, rtol=1e-13, atol=1e-13)


def test_every_row_is_told_where_it_goes():
    """Heun's second call stands where its first went, and goes nowhere."""
    model = told(1.0, (1000, None))
    plan = solvers.heun(model, [1.0, 0.5, 0.0])
    np.testing.assert_allclose(plan.t[:3], [[1000, 0.5], [500, 0.5], [500, 0.0]])
    # a step to a level given as (alpha, sigma)
    b = solvers.Builder(model, [1.0, 0.5, 0.0])
    b.row(1.0, to=(0.6, 0.4), x=solvers.X)
    b.row(0.4, to=0.0, x=solvers.M, scalars=())
    plan = b.build("mine", consistent=False)
    np.testing.assert_allclose(plan.t[:2], [[1000, 0.4], [400, 0.0]])


def test_scalars_of_a_row_come_after_both_times():
    b = solvers.Builder(told(1.0), [1.0, 0.5, 0.0])
    for i in range(2):
        b.row(b.t[i], to=b.t[i + 1], x=solvers.X, scalars=[7.0 + i, 9.0])
    plan = b.build("mine", consistent=False)
    assert plan.t[:2].tolist() == [[1.0, 0.5, 7.0, 9.0], [0.5, 0.0, 8.0, 9.0]]


def test_a_row_that_holds_goes_nowhere():
    model = told(3.0, (1000, 1))
    plan = solvers.held(solvers.euler(model, [1.0, 0.4, 0.1]), before=2, after=1)
    first, middle, end = model.schedule.sigma(np.array([1.0, 0.4, 0.1]))
    goes = [[first, first], [first, first], [first, middle], [middle, end], [end, end]]
    np.testing.assert_allclose(plan.t[:5], np.array(goes) * [1000, 1])
    assert plan.remake() == plan


def test_remake_and_the_file_keep_both_times():
    model = told(3.0, (1000, 1))
    plan = solvers.euler(model, grids.uniform(model.schedule, 6))
    assert plan.note["model"]["time"] == [1000.0, 1.0]
    assert plan.remake() == plan and fs.Plan.from_bytes(plan.to_bytes()).remake() == plan
    late = plan.remake(start=2)
    assert late.E == 2 and (late.t[:-2] == plan.t[2:-2]).all()
    assert pickle.loads(pickle.dumps(model)).time == (1000, 1)
    kept = solvers.euler(told(3.0, (None, np.sqrt)), grids.uniform(model.schedule, 2))
    with pytest.raises(ValueError, match="remake: the model's time was a callable"):
        kept.remake()


def test_a_plan_is_held_to_the_number_of_times():
    grid = grids.uniform(FLOW.schedule, 3)
    two = Model(average, FLOW.schedule, "flow", time=(1000, 1000))
    one = Model(average, FLOW.schedule, "flow", time=1000)
    other = Model(average, FLOW.schedule, "flow", time=(1000, 1))
    for made, asked in ((two, one), (one, two), (two, other)):
        with pytest.raises(ValueError, match="the plan was made for time = "):
            fs.Sampler(solvers.euler(made, grid), asked)
    fs.Sampler(solvers.euler(two, grid), two)
    with pytest.raises(ValueError, match="model: some are told one time and some two"):
        solvers.Builder([one, two], grid)
    with pytest.raises(ValueError, match="trajectories: the model is told two times"):
        fs.optimize.oss(two, unit(4, 8), budget=2)


@pytest.mark.parametrize("time", [(1,), (1, 1, 1), (1, "sigma"), [None, True], ()])
def test_other_times_are_refused(time):
    with pytest.raises(ValueError, match="Model: time = .*a callable or a pair of these"):
        Model(average, schedules.Flow(), "flow", time=time)


def test_engine_and_guidance_take_both_times():
    plan = solvers.euler(told(1.0), [1.0, 0.4, 0.0])
    model = lambda x, t, shift: average(x, t) + shift.view(-1, 1)
    z, ones = unit(3, 8), torch.ones(3)
    words = {"cond": {"shift": ones}, "uncond": {"shift": 0 * ones}, "guidance": 2.0}
    want = fs.Sampler(plan, model)(noise=z, **words)
    carried = 1.2 * STD / np.hypot(0.6 * STD, 0.4)  # the first step's shift, in the second
    torch.testing.assert_close(want, MEAN + STD * z - carried - 0.8, rtol=1e-5, atol=1e-5)
    engine = fs.Engine(model, shape=(8,), capacity=3)
    one = {"cond": {"shift": ones[:1]}, "uncond": {"shift": 0 * ones[:1]}, "guidance": 2.0}
    tickets = [engine.submit(plan, noise=z[k : k + 1], **one) for k in range(3)]
    engine.run()
    assert (torch.cat([ticket.result() for ticket in tickets]) == want).all()


@pytest.mark.parametrize("n", [1, 4])
def test_euler_is_diffusers_flow_map_scheduler(n):
    peer = diffusers.FlowMapEulerDiscreteScheduler(shift=3.0)
    peer.set_timesteps(n)
    z = unit(2, 8, dtype=torch.float64)
    x, ends = z, [*peer.timesteps.tolist(), 0.0]
    for t, r in zip(ends[:-1], ends[1:], strict=True):
        f = average(x, torch.tensor([[t, r]] * 2, dtype=torch.float64) / 1000)
        x = peer.step(f, t, x, r_timestep=r).prev_sample
    model = Model(lambda x, t: average(x, t / 1000), FLOW.schedule, "flow", time=(1000, 1000))
    plan = solvers.euler(model, grids.uniform(model.schedule, n))
    np.testing.assert_allclose(plan.t[:-2], np.stack([ends[:-1], ends[1:]], 1), rtol=1e-12)
    torch.testing.assert_close(fs.Sampler(plan, model)(noise=z), x, rtol=1e-12, atol=1e-12)
