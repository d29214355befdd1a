"""Where a run that begins with an image begins: start= is an index, strength= the share of the
steps, level= a noise level sigma/alpha for which the grid is made again.
"""

import inspect
import math
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import grids, solvers
from fastsample.schedules import EDM, VE, VP, DiscreteVP, Flow, TrigFlow
from fastsample.solvers import SOLVERS

SD = DiscreteVP.scaled_linear()
EDM80 = EDM()


def unit(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def euler(n=10, schedule=EDM80):
    return solvers.euler(schedule, grids.karras(schedule, n), prediction="x0")


def half(x, t):
    return 0.5 * x


# -- one meaning an argument -----------------------------------------------------------------------
@pytest.mark.parametrize("door", [*SOLVERS, "remake"])
def test_two_ways_at_once_are_refused(door):
    build = euler(6).remake
    if door in SOLVERS:
        build = partial(SOLVERS[door], EDM80, grids.karras(EDM80, 6), prediction="x0")
    for words in (
        {"start": 1, "strength": 0.5},
        {"start": 0, "level": 2.0},
        {"strength": 0.5, "level": 2.0},
        {"start": 1, "strength": 0.5, "level": 2.0},
    ):
        with pytest.raises(ValueError, match="beside .*; one of the three is accepted"):
            build(**words)


@pytest.mark.parametrize("start", [1.0, 0.5, np.float32(1), True, "1", torch.tensor(1.0), [1]])
def test_start_is_an_index_and_nothing_else(start):
    """JSON gives 1 or 1.0: one is an index, the other a sentence that names strength=."""
    told = r"^start: .* for a grid of 6 steps; an index 0..5 is accepted \(strength= the share of"
    with pytest.raises(ValueError, match=told):
        euler(6).remake(start)
    with pytest.raises(ValueError, match=told):
        solvers.ddim(EDM80, grids.karras(EDM80, 6), prediction="x0", start=start)


@pytest.mark.parametrize("start", [2, np.int64(2), np.array(2), torch.tensor(2)])
def test_a_whole_number_of_any_kind_is_an_index(start):
    assert euler(6).remake(start) == euler(6).remake(2)
    assert euler(6).remake(start).note["start"] == 2


def test_strength_1_is_one_thing():
    plan = euler(6)
    whole = plan.remake(0)
    for strength in (1, 1.0, np.float32(1), torch.tensor(1), 1 + 2**-23, Fraction(1)):
        assert plan.remake(strength=strength) == whole


@pytest.mark.parametrize("kind", [float, np.float64, np.float32, np.float16, torch.tensor])
def test_the_exact_share_is_meant(kind):
    """Every k of n steps, said as the float nearest k/n: n·(k/n) falls short of k in many."""
    short = 0
    for n in (2, 3, 7, 10, 25, 29, 30, 50, 100):
        grid = np.linspace(1.0, 0.0, n + 1)
        for k in range(1, n + 1):
            short += int(n * (k / n)) < k
            plan = solvers._start.index_of(n, kind(k / n))
            assert plan == n - k, (n, k)
    assert short > 3 and len(grid) == 101  # the plain product is not enough


@pytest.mark.parametrize(
    ("n", "strength", "steps"), [(100, 0.29, 29), (10, 0.55, 5), (3, 2 / 3, 2)]
)
def test_a_share_is_rounded_down(n, strength, steps):
    plan = solvers.ddim(Flow(), grids.uniform(Flow(), n), prediction="flow", strength=strength)
    assert (plan.nfe, plan.note["start"]) == (steps, n - steps)


def test_what_leaves_no_step_is_said_and_the_advice_works():
    one = euler(1)
    for strength in (0.1, 0.5, 0.8):
        told = (
            f"^strength: {strength} of 1 step.* is no whole step; 1 to 1, or level= with the noise"
        )
        with pytest.raises(ValueError, match=told):
            one.remake(strength=strength)
        with pytest.raises(ValueError, match=told):
            fs.Sampler(one, half)(latent=torch.ones(1, 4), strength=strength)
    with pytest.raises(ValueError, match="is no whole step; 0.166667 to 1, or level="):
        euler(6).remake(strength=0.1)
    assert euler(6).remake(strength=0.166667).nfe == 1
    with pytest.raises(ValueError, match="^strength: 0 leaves the image as it is"):
        euler(6).remake(strength=0)
    for strength in (-0.1, 1.01, math.nan, "half", True):
        with pytest.raises(ValueError, match="^strength: .*; a number above 0 up to 1 is accepted"):
            euler(6).remake(strength=strength)


# -- a noise level ---------------------------------------------------------------------------------
def test_one_step_keeps_the_image():
    """What strength .5 of one step is meant to do: images +7 and -7 do not end alike."""
    plan = euler(1)
    ends = []
    for image in (7.0, -7.0):
        x = torch.full((1, 1000), image, dtype=torch.float64)
        ends.append(fs.Sampler(plan, half)(latent=x, level=0.5, seed=1).mean().item())
    # x = image + .5 noise, x0 = x / 2, one step to sigma = 0
    assert ends[0] == pytest.approx(3.5, abs=0.05) and ends[1] == pytest.approx(-3.5, abs=0.05)


@pytest.mark.parametrize("level", [3.3])
@pytest.mark.parametrize("name", SOLVERS)
def test_exactly_as_many_evaluations_from_that_level_on(name, level):
    calls = SOLVERS[name](EDM80, grids.karras(EDM80, 6), prediction="x0").nfe
    for schedule, prediction in ((EDM80, "x0"), (Flow(3.0), "flow"), (SD, "eps"), (VP(), "v")):
        grid = grids.karras(schedule, 6)
        plan = SOLVERS[name](schedule, grid, prediction=prediction, level=level)
        assert plan.nfe == calls
        assert plan.sigma[1] / plan.alpha[1] == pytest.approx(level, rel=1e-9)
        assert plan.sigma[-1] == 0.0 and plan.sigma[0] == 0.0 and plan.alpha[0] == 1.0
        # the note has the grid as it was given, from which any other start is made
        assert (plan.note["grid"], plan.note["level"]) == (grid.tolist(), level)
        assert plan.remake(2) == SOLVERS[name](schedule, grid, prediction=prediction, start=2)
        again = SOLVERS[name](schedule, grid, prediction=prediction).remake(level=level)
        assert again == plan == plan.remake(level=level) and plan.remake() == again.remake()


RULES = {
    "uniform": (Flow(3.0), lambda s, n, top: np.linspace(top, 0.0, n + 1), grids.uniform),
    "trig": (TrigFlow(), lambda s, n, top: np.linspace(top, 0.0, n + 1), grids.uniform),
    "trailing": (SD, lambda s, n, top: np.linspace(top, -1.0, n + 1), grids.trailing),
    "linspace": (SD, lambda s, n, top: [*np.linspace(top, 0.0, n), -1.0], grids.linspace),
    "karras": (EDM80, lambda s, n, top: grids.karras(EDM(sigma_max=top), n), grids.karras),
    "exponential": (
        EDM80,
        lambda s, n, top: grids.exponential(EDM(sigma_max=top), n),
        grids.exponential,
    ),
    "even in log": (
        VE(),
        lambda s, n, top: [*np.linspace(top, 0.0, n), -1.0],
        grids.uniform_half_log_snr,
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_grid_made_again_is_the_rules_own_from_there(rule):
    schedule, own, make = RULES[rule]
    for n in (3, 8, 20):
        for t in np.linspace(schedule.t_min, schedule.t_max, 7)[2:-1]:
            level = float(np.exp(-schedule.half_log_snr(t)))
            found = grids.starting_at(schedule, make(schedule, n), level)
            np.testing.assert_allclose(found, own(schedule, n, t), rtol=1e-9, atol=1e-12)


def test_a_grid_made_again_at_its_own_start_is_itself():
    for schedule in (EDM80, SD, VP()):
        grid = grids.karras(schedule, 5)
        top = float(np.exp(-schedule.half_log_snr(grid[0])))
        for level in (top, top * (1 + 1e-7)):
            assert np.array_equal(grids.starting_at(schedule, grid, level), grid)


def test_the_step_to_the_end_stays_one_step():
    grid = np.array([10.0, 2.0, 0.7, 0.3, 0.0])
    found = grids.starting_at(EDM80, grid, 1.0)
    assert found[0] == 1.0 and found[-2] == 0.3 and found[-1] == 0.0 and len(found) == 5
    # a level below that: even in t, no point of the grid is left
    np.testing.assert_allclose(grids.starting_at(EDM80, grid, 0.2), np.linspace(0.2, 0, 5))
    kept = grids.starting_at(EDM80, grid[:-1], 1.0)
    assert len(kept) == 4 and kept[-1] == 0.3
    np.testing.assert_allclose(grids.starting_at(EDM80, [80.0, 0.0], 5.0), [5.0, 0.0], 1e-15)


@pytest.mark.parametrize("level", [0, -1.0, 80.1, math.inf, math.nan, "2", True, None])
def test_a_level_outside_the_grid_is_refused(level):
    with pytest.raises(ValueError, match=r"^level: .*; a noise level .* above 0 .* up to 80 \("):
        grids.starting_at(EDM80, grids.karras(EDM80, 4), level)


def test_of_a_grid_from_pure_noise_no_level_is_that_of_pure_noise():
    with pytest.raises(ValueError, match=r"level: inf; .*, less than that of .*\(strength=1\)"):
        grids.starting_at(Flow(), grids.uniform(Flow(), 4), math.inf)


def test_rows_fitted_to_their_grid_have_no_other():
    weights = [[0.5, 0.5], [0.0, 1.0]]
    made = solvers.fitted(Flow(), [1.0, 0.5, 0.0], weights=weights, prediction="flow")
    assert made.remake().nfe == 2
    made = made.with_note(consistent=True)
    with pytest.raises(ValueError, match="level=0.5 of rows that were fitted to their own grid"):
        made.remake(level=0.5)


# -- through every door ----------------------------------------------------------------------------
def own_loop(image, noise, sigmas, model):
    x = image + sigmas[0] * noise
    for a, b in zip(sigmas[:-1], sigmas[1:], strict=True):
        x = x + (b - a) * (x - model(x, a)) / a
    return x


@pytest.mark.parametrize("words", [{"strength": 0.5}, {"level": 2.0}])
def test_every_door_begins_there(words):
    plan, image, noise = euler(6), unit(2, 1, 8, 8, seed=1), unit(2, 1, 8, 8, seed=2)
    sigmas = plan.remake(**words).sigma[1:].tolist()
    right = own_loop(image, noise, sigmas, half)
    model = fs.Model(half, EDM80, "x0")
    x = fs.Sampler(plan, model)(latent=image, noise=noise, **words)
    assert x.dtype == torch.float64 and (x - right).abs().max() < 1e-12
    run = fs.Run(plan, latent=image, noise=noise, **words)
    while not run.done:
        run.step(half(run.model_input, run.t))
    assert torch.equal(run.x, x) and run.plan == plan.remake(**words)
    whole = fs.Sampler(plan.remake(**words), model)(latent=image, noise=noise)
    assert torch.equal(whole, x)
    gradients = fs.Sampler(plan, model, differentiable=True)
    assert (gradients(latent=image, noise=noise, **words) - x).abs().max() < 1e-12


def test_the_engine_begins_there():
    plan, image = euler(6), unit(1, 8, seed=1).float()
    engine = fs.Engine(lambda x, t: 0.5 * x, (8,), 4)
    tickets = [engine.submit(plan, latent=image, seed=3, level=2.0), engine.submit(plan, seed=4)]
    engine.run()
    alone = fs.Sampler(plan, half)(latent=image, seed=3, level=2.0)
    assert torch.equal(tickets[0].result(), alone)
    with pytest.raises(ValueError, match="Engine.submit: strength=0.5 without an image"):
        engine.submit(plan, seed=1, strength=0.5)


def test_a_sampler_keeps_what_it_made():
    sampler, image = fs.Sampler(euler(6), half), unit(2, 8).float()
    first = sampler(latent=image, level=2.0, seed=1)
    assert torch.equal(first, sampler(latent=image, level=2.0, seed=1))
    assert len(sampler._images._made) == 1
    for level in np.linspace(0.5, 3.0, 20):
        sampler(latent=image, level=level, seed=1)
    assert len(sampler._images._made) <= fs.runtime.images.KEPT
    assert torch.equal(first, sampler(latent=image, level=2.0, seed=1))
    sampler.release()
    assert not sampler._images._made


def test_guidance_comes_after():
    model = fs.Model(lambda x, t, w: w.view(-1, 1) * x, EDM80, "x0")
    sampler, image = fs.Sampler(euler(4), model), unit(3, 8).float()
    words = {"cond": {"w": torch.full((3,), 0.5)}, "uncond": {"w": torch.full((3,), 0.25)}}
    end = sampler(latent=image, strength=0.5, seed=1, guidance=2.0, **words)
    plain = fs.Sampler(euler(4), lambda x, t: 0.75 * x)(latent=image, strength=0.5, seed=1)
    assert (end - plain).abs().max() < 1e-5


def test_without_an_image_there_is_nothing_to_begin_from():
    for door in (fs.Run, lambda plan, **words: fs.Sampler(plan, half)(**words)):
        for begin in ({"noise": unit(1, 8)}, {"shape": (1, 8)}, {}):
            with pytest.raises(ValueError, match="level=2 without an image; latent= is needed"):
                door(euler(4), level=2, **begin)
        with pytest.raises(ValueError, match="start=1 beside level=2; one of the three"):
            door(euler(4), latent=unit(1, 8), level=2, start=1)


def test_a_float_for_a_row_names_the_other_two():
    told = r"start is 1.0; a row number .* is accepted \(an image begins with strength=.*level="
    with pytest.raises(TypeError, match=told):
        fs.Run(euler(4), latent=unit(1, 8), start=1.0)
    with pytest.raises(ValueError, match="pass the clean image as latent= with strength="):
        fs.Run(euler(4), latent=unit(1, 8))


def test_the_signature_has_the_three_together():
    for name, maker in SOLVERS.items():
        places = [*inspect.signature(maker).parameters]
        at = places.index("start")
        assert places[at : at + 3] == ["start", "strength", "level"], name
        assert maker.__name__ == name and maker.__doc__


def test_a_solver_of_ones_own_has_them_too(monkeypatch):
    monkeypatch.setattr(solvers, "SOLVERS", dict(SOLVERS))

    def mine(model, grid, *, prediction=None, start=None, inpaint=False, clip=0.0):
        b = solvers.Builder(model, grid, prediction=prediction, start=start, inpaint=inpaint)
        for i in range(b.n):
            a = b.sigma[i + 1] / b.sigma[i]
            x = a * solvers.X + (b.alpha[i + 1] - a * b.alpha[i]) * solvers.M
            b.row(b.t[i], to=b.t[i + 1], x=x)
        return b.build("mine of strength", order=1, citations=[])

    solvers.register("mine of strength", mine)
    made = solvers.SOLVERS["mine of strength"]
    plan = made(EDM80, grids.karras(EDM80, 4), prediction="x0")
    assert plan.remake(level=2.0).nfe == plan.nfe == 4 and plan.remake(strength=0.5).nfe == 2
    assert made(EDM80, grids.karras(EDM80, 4), prediction="x0", level=2.0) == plan.remake(level=2.0)


# -- starts that are no unit normal ----------------------------------------------------------------
STARTS = {
    "temperature": lambda z: 0.667 * z,
    "scaled": lambda z: 80.0 * z,
    "means": lambda z: z + torch.linspace(-3, 3, z.shape[-1], dtype=z.dtype),
    "padded": lambda z: torch.where(torch.arange(z.shape[-1]) < 400, z, 0.0),
}


@pytest.mark.parametrize("start", STARTS)
def test_the_sentence_names_the_road_and_it_leads_there(start):
    plan, z = euler(5), STARTS[start](unit(2, 1024))
    with pytest.raises(ValueError, match="pass latent= with start=1 .*plan.init_scale times it"):
        fs.Sampler(plan, half)(noise=z)
    # an own loop from sigma_0 times that start
    right = own_loop(0.0 * z, z, plan.sigma[1:].tolist(), half)
    end = fs.Sampler(plan, half)(latent=plan.init_scale * z, start=1)
    assert (end - right).abs().max() < 1e-12 * right.abs().max().clamp(min=1.0)


def test_noise_scale_reaches_an_images_start_and_no_other():
    plan, z = euler(4), unit(2, 64)
    same = fs.Sampler(plan, half)
    assert torch.equal(same(noise=z, noise_scale=0.0), same(noise=z))
    image = unit(2, 64, seed=5)
    run = fs.Run(plan, latent=image, level=2.0, noise=z, noise_scale=0.5)
    assert (run.x - (image + 0.5 * 2.0 * z)).abs().max() < 1e-12
    told = inspect.getdoc(fs.Run)
    assert "that of an image's" in told and "not the noise that a run starts with" in told


# -- the state's dtype -----------------------------------------------------------------------------
def test_the_state_of_float64_noise_is_float64():
    plan, z = euler(4), unit(2, 64)
    assert fs.Run(plan, noise=z).x.dtype == torch.float64
    assert fs.Run(plan, noise=z.float()).x.dtype == torch.float32
    assert fs.Run(plan, noise=z, state_dtype=torch.float32).x.dtype == torch.float32
    assert fs.Run(plan, shape=(2, 64), seed=1).x.dtype == torch.float32
    assert fs.Run(plan, noise=z.bfloat16()).x.dtype == torch.float32
    sampler = fs.Sampler(plan, half)
    assert (
        sampler(noise=z).dtype == torch.float64 and sampler(noise=z.float()).dtype == torch.float32
    )
    assert fs.Sampler(plan, half, state_dtype=torch.float32)(noise=z).dtype == torch.float32
    x = own_loop(0.0 * z, z, plan.sigma[1:].tolist(), half)
    assert (sampler(noise=z) - x).abs().max() < 1e-13 * 80


@pytest.mark.parametrize(
    "kind",
    [float, np.float32, np.float16, torch.tensor]
    + [partial(torch.tensor, dtype=dtype) for dtype in (torch.float32, torch.half, torch.bfloat16)],
)
def test_a_strength_of_few_bits_is_what_pipelines_count_or_the_exact_share(kind):
    """min(int(n·strength), n) in the strength's own arithmetic, but where its rounding alone lost a
    step: never a third number.
    """
    alike = 0
    for n in (1, 2, 4, 7, 13, 20, 28, 30, 50, 51, 100, 1000):
        for k in range(1, 101):
            strength, exact = kind(k / 100), k * n // 100
            counted = min(int(n * strength), n)
            if exact == counted == 0:
                continue
            found = n - solvers._start.index_of(n, strength)
            assert found in (exact, counted), (n, k)
            alike += found == counted
    assert alike > 900
