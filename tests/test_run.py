"""Run: every solver against the NumPy interpreter, what the model is asked, starts, noise, masks,
copies, and what is refused.
"""

import copy

import interpreter
import numpy as np
import pytest
import torch
from cases import BACKENDS, same

from fastsample import grids, schedules
from fastsample.kernels import native, normal
from fastsample.model import Model
from fastsample.runtime.run import Run
from fastsample.solvers import SOLVERS

MODEL = Model(None, schedules.Flow(shift=3.0), prediction="flow", time=1000)
EDM = Model(None, schedules.EDM(), prediction="edm")


def drawing(name, model=MODEL):
    """Arguments that make a solver draw noise, where it can and does not by itself."""
    return {"ddim": {"eta": 1.0}, "heun": {"s_churn": 3.0} if model is EDM else {}}.get(name, {})


def plan_of(name="dpmpp_2m", n=5, model=MODEL, **options):
    return SOLVERS[name](
        model,
        grids.uniform(model.schedule, n) if model is MODEL else grids.karras(model.schedule, n),
        **options,
    )


def unit(batch=3, *sizes, seed=0, dtype=torch.float32):
    return torch.randn(
        batch,
        *(sizes or (2, 5)),
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.float64,
    ).to(dtype)


def tell(t, x):
    return t.view(-1, *[1] * (x.dim() - 1))


def net(x, t):
    """A smooth function of everything it is told, of + and * alone: the same numbers in NumPy and
    torch, any shape.
    """
    return x * 0.3 + x * x * 0.05 * (tell(t, x) * 0.001 + 0.5)


def finish(run, model=net):
    while not run.done:
        run.step(model(run.model_input, run.t))
    return run


def by_interpreter(plan, start, seed, *, first=0, model=None, dtype=np.float64, **options):
    """Sample by sample, by the oracle."""
    model = model or (
        lambda x, t, row, call: [x * 0.3 + x * x * 0.05 * (dtype(t[0]) * dtype(0.001) + dtype(0.5))]
    )
    results, D = [], start[0].numel()
    for b in range(len(start)):

        def noise(k, b=b):
            return (
                options["own"][b]
                if k == 0 and "own" in options
                else normal(torch.tensor([seed + b]), torch.tensor([k]), D)[0].numpy()
            )

        one = {k: v[b].numpy().ravel() for k, v in options.items() if k != "own"}
        results.append(
            torch.from_numpy(
                interpreter.run(
                    plan, start[b].numpy().ravel(), model, noise, first=first, dtype=dtype, **one
                )
            )
        )
    return torch.stack(results).view(start.shape)


def close(ours, theirs, roundings, largest):
    """Equal but for so many roundings of float64 numbers no larger than `largest`."""
    return bool(((ours - theirs).abs() <= 2**-53 * roundings * largest).all())


@pytest.mark.pairs(name=[*SOLVERS], model={"flow": MODEL, "edm": EDM}, backend=BACKENDS)
def test_every_solver_runs_as_the_interpreter(name, model, backend):
    for options in ({}, drawing(name, model)):
        plan = plan_of(name, model=model, **options)
        z = unit(dtype=torch.float64)
        run = finish(Run(plan, noise=z, seed=11, state_dtype=torch.float64, backend=backend))
        assert same(run.x, by_interpreter(plan, z, 11))
        assert run.row == plan.rows - 1 and not run.status().any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SOLVERS)
def test_float32_is_the_interpreters_float32_to_the_bit(name, backend):
    plan = plan_of(name, **drawing(name))
    z = unit()
    model = lambda x, t, row, call: [
        net(torch.from_numpy(x)[None], torch.tensor([t[0]], dtype=torch.float32))[0].numpy()
    ]
    assert torch.equal(
        finish(Run(plan, noise=z, seed=11, backend=backend)).x,
        by_interpreter(plan, z, 11, model=model, dtype=np.float32),
    )


@pytest.mark.parametrize(
    "model_dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str
)
@pytest.mark.skipif(bool(native.MISSING), reason="compares the native backend")
def test_backends_agree_to_the_bit_in_every_model_dtype(model_dtype):
    for plan in (
        plan_of("unipc", 6),
        plan_of("dpmpp_2m_sde", 6),
        plan_of("heun", 4, EDM, s_churn=2.0),
    ):
        for state in (torch.float32, torch.float64):
            runs = [
                finish(
                    Run(
                        plan,
                        noise=unit(),
                        seed=4,
                        backend=b,
                        model_dtype=model_dtype,
                        state_dtype=state,
                    ),
                    lambda x, t: net(x, t.to(x.dtype)),
                )
                for b in BACKENDS
            ]
            assert same(runs[0].x, runs[1].x) and same(runs[0].x0, runs[1].x0)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_model_is_asked_once_a_row_at_the_plans_times_and_scales(name):
    plan, asked = plan_of(name, model=EDM), []
    run = Run(plan, noise=unit(2), seed=3)
    while not run.done:
        asked.append((run.row, run.t.clone(), run.model_input.clone(), run.x.clone()))
        run.step(net(run.model_input, run.t))
    rows = [k for k in range(plan.rows) if plan.call[k] >= 0]
    assert [a[0] for a in asked] == rows
    assert len(asked) == plan.nfe
    for row, t, model_input, x in asked:
        assert t.tolist() == [float(np.float32(plan.t[row - 1, 0]))] * 2
        assert torch.equal(model_input, torch.tensor(plan.c[row - 1], dtype=torch.float32) * x)


def test_the_model_reads_the_state_itself_where_nothing_scales_it():
    run = Run(plan_of("dpmpp_2m"), noise=unit())
    assert run.model_input is run.x
    assert (
        Run(plan_of("dpmpp_2m"), noise=unit(), model_dtype=torch.bfloat16).model_input is not run.x
    )
    assert (
        Run(plan_of("dpmpp_2m", model=EDM), noise=unit()).model_input.data_ptr() != run.x.data_ptr()
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sample_of_a_batch_is_the_sample_alone(backend):
    plan, z = plan_of("dpmpp_2m_sde"), unit(4)
    whole = finish(Run(plan, noise=z, seed=[5, 9, 2**63 + 1, -3], backend=backend))
    for b, seed in enumerate([5, 9, 2**63 + 1, -3]):
        assert same(
            finish(Run(plan, noise=z[b : b + 1], seed=seed, backend=backend)).x, whole.x[b : b + 1]
        )
    assert same(
        finish(Run(plan, noise=z, seed=torch.tensor([5, 9, -(2**63) + 1, -3]), backend=backend)).x,
        whole.x,
    )


def test_noise_from_the_seeds():
    plan = plan_of("euler_ancestral")
    drawn = normal(torch.tensor([7, 8]), torch.tensor([0, 0]), 10).view(2, 2, 5)
    assert same(
        finish(Run(plan, shape=(2, 2, 5), seed=7)).x, finish(Run(plan, noise=drawn, seed=7)).x
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_image_is_noised_and_finished(backend):
    """A plan made with start=: row 0 takes the image; its noise is the seeds', the caller's noise=,
    or a noise_source.
    """
    plan, image, z = plan_of("dpmpp_2m", 8, start=3), unit(seed=5), unit(seed=6)
    run = Run(plan, latent=image, noise=z, seed=2, backend=backend)
    level = float(plan.alpha[1]), float(plan.sigma[1])
    assert torch.allclose(run.x, level[0] * image + level[1] * z, rtol=0, atol=1e-6)
    assert same(finish(run).x, finish(Run(plan, latent=image, noise_source=[z], backend=backend)).x)
    assert same(
        finish(Run(plan, latent=image, noise_source=lambda row, k: z, backend=backend)).x, run.x
    )
    drawn = normal(torch.arange(2, 5), torch.zeros(3, dtype=torch.int64), 10, stage=1).view(3, 2, 5)
    assert same(
        finish(Run(plan, latent=image, seed=2, backend=backend)).x,
        finish(Run(plan, latent=image, noise=drawn, backend=backend)).x,
    )


def test_a_state_enters_at_an_entry():
    plan = plan_of("heun", 5, EDM)
    run = Run(plan, noise=unit())
    while run.row < plan.entries[3]:
        run.step(net(run.model_input, run.t))
    entered = Run(plan, latent=run.x, start=run.row)
    assert same(entered.model_input, run.model_input) and same(entered.t, run.t)
    assert same(finish(entered).x, finish(run).x)
    first = Run(plan, noise=unit())
    assert same(finish(Run(plan, latent=first.x, start=1)).x, finish(first).x)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SOLVERS)
def test_inpainting_is_the_interpreters(name, backend):
    plan = plan_of(name, inpaint=True, **drawing(name))
    z, known = unit(dtype=torch.float64), unit(seed=8, dtype=torch.float64)
    mask = torch.rand(3, 2, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    run = finish(
        Run(
            plan,
            noise=z,
            seed=11,
            state_dtype=torch.float64,
            mask=mask,
            known=known,
            backend=backend,
        )
    )
    own = z.flatten(1).numpy()  # noise id 0 is the noise the run began with
    assert same(run.x, by_interpreter(plan, z, 11, mask=mask, known=known, own=own))
    one = finish(
        Run(
            plan,
            noise=z,
            seed=11,
            state_dtype=torch.float64,
            mask=mask[:1],
            known=known[:1],
            backend=backend,
        )
    ).x
    many = Run(
        plan,
        noise=z,
        seed=11,
        state_dtype=torch.float64,
        mask=mask[:1].expand(3, 2, 5),
        known=known[:1].expand(3, 2, 5),
        backend=backend,
    )
    assert same(one, finish(many).x)
    kept = finish(
        Run(
            plan,
            noise=z,
            state_dtype=torch.float64,
            mask=torch.ones(1, 1, 1, dtype=torch.float64),
            known=known,
            backend=backend,
        )
    )
    # x' + (y - x') is y but for two roundings; here x' is x0
    assert close(kept.x, known, 2, (known.abs() + kept.x0.abs()).max())


@pytest.mark.parametrize("backend", BACKENDS)
def test_mean_and_std_of_a_stochastic_row(backend):
    plan, z = plan_of("euler_ancestral"), unit()
    run = Run(plan, noise=z, seed=3, noise_scale=torch.tensor([1.0, 0.5, 0.0]), backend=backend)
    f = net(run.model_input, run.t)
    before = run.x.clone()
    mean, std, row = run.mean(f), run.std, run.row
    assert torch.equal(run.x, before) and run.row == row
    run.step(f)
    draw = normal(torch.arange(3, 6), torch.full((3,), int(plan.ids[row, 0])), 10).view(3, 2, 5)
    assert torch.allclose(run.x - mean, std.view(3, 1, 1) * draw, rtol=0, atol=1e-6)
    assert same(run.x[2], mean[2]) and std[2] == 0 and std[0] > std[1] > 0
    still = Run(plan_of("euler"), noise=z, backend=backend)
    assert still.std.tolist() == [0, 0, 0]


def test_noise_source_replaces_philox():
    plan, z, calls = plan_of("euler_ancestral"), unit(), []
    own = {
        int(k): normal(torch.arange(3, 6), torch.full((3,), int(k)), 10).view(3, 2, 5)
        for k in plan.ids.ravel()
        if k > 0
    }

    def source(row, k):
        calls.append((row, k))
        return own[k]

    expected = finish(Run(plan, noise=z, seed=3)).x
    assert same(finish(Run(plan, noise=z, noise_source=source)).x, expected)
    assert calls == [
        (row, int(plan.ids[row, 0])) for row in range(plan.rows) if plan.ids[row, 0] > 0
    ]
    assert same(finish(Run(plan, noise=z, noise_source=list(own.values()))).x, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_copy_goes_its_own_way(backend):
    plan = plan_of("unipc", 6, EDM)
    run = Run(plan, noise=unit(), backend=backend)
    for _ in range(3):
        run.step(net(run.model_input, run.t))
    before = run.x.clone()
    twin = copy.deepcopy(run)
    assert twin._pool.table is run._pool.table and twin.plan is plan and twin.row == run.row
    finish(run)
    assert torch.equal(twin.x, before)
    assert same(finish(twin).x, run.x) and same(twin.x0, run.x0)


def test_assigning_the_state_refreshes_the_model_input():
    run = Run(plan_of("heun", 4, EDM), noise=unit())
    run.step(net(run.model_input, run.t))
    new = unit(seed=9)
    run.x = new
    assert torch.equal(run.x, new)
    assert torch.equal(
        run.model_input, torch.tensor(run.plan.c[run.row - 1], dtype=torch.float32) * new
    )
    with pytest.raises(ValueError, match="Run.x: .* for a state of"):
        run.x = new[:1]


def test_x0_is_the_prediction_of_the_data():
    plan = plan_of("dpmpp_2m")
    run = Run(plan, noise=unit(dtype=torch.float64), state_dtype=torch.float64)
    assert run.x0 is None
    x, f = run.x.clone(), net(run.model_input, run.t)
    run.step(f)
    assert torch.allclose(run.x0, x - plan.sigma[1] * f, rtol=0, atol=1e-12)
    assert Run(plan, noise=unit(), preview=False).x0 is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_layout_of_an_output_gives_the_same_bits(backend):
    plan, z = plan_of(), unit(2, 4, 6, 6)
    plain = finish(Run(plan, noise=z, backend=backend)).x
    last = finish(
        Run(plan, noise=z.contiguous(memory_format=torch.channels_last), backend=backend),
        lambda x, t: net(x, t).contiguous(memory_format=torch.channels_last),
    )
    assert same(last.x, plain)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (1,), (3, 1), (1, 127), (2, 4097)])
def test_any_size(backend, shape):
    run = finish(Run(plan_of("dpmpp_2m_sde"), shape=shape, backend=backend))
    assert run.x.shape == shape and bool(torch.isfinite(run.x).all()) and not run.status().any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_poisoned_sample_harms_no_other(backend):
    plan, z = plan_of("unipc"), unit(4)
    clean, run = finish(Run(plan, noise=z, backend=backend)).x, Run(plan, noise=z, backend=backend)
    while not run.done:
        f = net(run.model_input, run.t)
        f[2] = torch.nan if run.row == 2 else f[2]
        run.step(f)
    assert run.status().bitwise_and(255).tolist() == [0, 0, 8, 0]
    assert int(run.status()[2]) >> 8 == 2  # the row
    assert same(run.x[[0, 1, 3]], clean[[0, 1, 3]])
