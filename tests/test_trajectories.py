"""Trajectories: equal to the interpreter's, whatever the batches; guided outputs; a Denoiser says
what a Run's model says.
"""

import interpreter
import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import metrics
from fastsample.models.analytic import GaussianMixture
from fastsample.trajectories import Denoiser, record, visits


def problem(prediction="v", B=5):
    draw = np.random.default_rng(2)
    law = GaussianMixture(draw.standard_normal((3, 2, 3)), np.ones(3), 0.3)
    model = law.model(fs.schedules.VP(), prediction)
    return model, torch.tensor(draw.standard_normal((B, 2, 3))), fs.grids.uniform(model.schedule, 6)


@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp_3m", "unipc"])
def test_record_equals_the_interpreter(solver):
    model, z, grid = problem()
    plan = fs.solvers.SOLVERS[solver](model, grid)
    got = record(plan, model, z, batch_size=2)
    assert got.x.dtype == torch.float64
    assert len(got.x) == plan.nfe + 1 == len(got.x0) + 1 == len(got.time) + 1
    for b in range(len(z)):
        trace = []

        def ask(inp, t, row, call):
            return [model(torch.tensor(inp).reshape(1, 2, 3), torch.tensor(t)).numpy().reshape(-1)]

        end = interpreter.run(plan, z[b].numpy().reshape(-1), ask, trace=trace)
        np.testing.assert_allclose(got.end[b].flatten(), end, rtol=0, atol=1e-12)
        states = np.array([x for x, _ in trace[: plan.nfe + 1]])
        np.testing.assert_allclose(got.x[:, b].flatten(1), states, rtol=0, atol=1e-12)
        clean = np.array([x0 for _, x0 in trace[1 : plan.nfe + 1]])
        np.testing.assert_allclose(got.x0[:, b].flatten(1), clean, rtol=0, atol=1e-11)
    np.testing.assert_array_equal(got.sigma, plan.sigma[1:])
    np.testing.assert_array_equal(got.time, plan.t[: plan.nfe, 0])


def test_batches_change_nothing():
    model, z, grid = problem()
    plan = fs.solvers.dpmpp_2m(model, grid)
    whole = record(plan, model, z)
    for size in (1, 2, 5):
        part = record(plan, model, z, batch_size=size)
        assert torch.equal(part.x, whole.x) and torch.equal(part.x0, whole.x0)


def test_guided_outputs():
    model, z, grid = problem("x0")
    plain = fs.solvers.euler(model, grid)
    fn = lambda x, t: 3.0 * model.fn(x, t) - 2.0 * 0.5 * model.fn(x, t)
    fused = fs.Model(fn, schedule=model.schedule, prediction="x0")
    fn = lambda x, t, gain: gain * model.fn(x, t)
    words = fs.Model(fn, schedule=model.schedule, prediction="x0")
    branches = {"cond": {"gain": 1.0}, "uncond": {"gain": 0.5}}
    got = record(fs.guidance.guided(plain), words, z, guidance=3.0, **branches)
    want = record(plain, fused, z)
    torch.testing.assert_close(got.x, want.x, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(got.x0, want.x0, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="1 branches and 2 are given"):
        record(plain, words, z, cond={}, uncond={}, guidance=3.0)


def test_visits_yield_every_row_of_every_chunk():
    model, z, grid = problem()
    plan = fs.solvers.euler(model, grid)
    rows = visits(plan, model, z, batch_size=3)
    seen = [(s.start, s.stop, row, f is None) for s, row, x, f in rows]
    assert seen == [(a, b, row, row == 7) for a, b in ((0, 3), (3, 5)) for row in range(1, 8)]


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_a_batch_has_samples(size):
    model, z, grid = problem()
    with pytest.raises(ValueError, match=f"^trajectories: batch_size={size}; a whole number"):
        record(fs.solvers.euler(model, grid), model, z, batch_size=size)
    with pytest.raises(ValueError, match=f"^trajectories: batch_size={size}; a whole number"):
        Denoiser(model, grid, z, dtype=z.dtype, batch_size=size)(z.reshape(5, 1, 6), np.array([2]))
    with pytest.raises(ValueError, match=f"^metrics.run: batch_size={size}; a whole number"):
        metrics.run(fs.solvers.euler(model, grid), model, z, batch_size=size)


@pytest.mark.parametrize("prediction", ["x0", "eps", "v", "flow", "edm", "trigflow"])
def test_denoiser_says_what_the_run_says(prediction):
    model, z, grid = problem(prediction)
    run = record(fs.solvers.euler(model, grid), model, z)
    rows = []
    ask = Denoiser(model, grid, z, dtype=torch.float64, batch_size=4, asked=rows.append)
    at = np.array([4, 0, 5, 2])
    got = ask(run.x[at].transpose(0, 1).reshape(5, 4, 6), at)
    got = got.reshape(5, 4, 2, 3).transpose(0, 1)
    torch.testing.assert_close(got, run.x0[at], rtol=1e-11, atol=1e-11)
    assert rows == [4, 4, 4, 4, 4] and ask.rows == 20


def test_denoiser_refuses_what_a_model_may_not_return():
    model, z, grid = problem()
    x = torch.zeros(5, 1, 6, dtype=torch.float64)
    for fn, sentence in ((lambda x, t: x[:1], "returned"), (lambda x, t: x / 0, "not finite")):
        wrong = fs.Model(fn, schedule=model.schedule, prediction="x0")
        with pytest.raises(ValueError, match=sentence):
            Denoiser(wrong, grid, z, dtype=torch.float64)(x, np.array([2]))
