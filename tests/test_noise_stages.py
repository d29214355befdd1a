"""What tells one noise from another: its seed, the stage of its run, its id by its place in the
grid. Runs that follow one another draw nothing twice, and what is resumed draws what it would have.
"""

import numpy as np
import pytest
import torch
from cases import same
from test_run import EDM, finish, net, plan_of, tell, unit
from test_seed import GAUSSIAN, ROADS, one_start, roads  # noqa: F401

import fastsample as fs
from fastsample.interop import k_sample
from fastsample.kernels import normal
from fastsample.runtime.run import Run
from fastsample.runtime.sampler import Sampler
from fastsample.solvers import Builder, M

N = 250_000  # so that a correlation of .01 is 5 of its standard deviations
# answers 0: x' of lcm is sigma' times the noise of the step, and the start is sigma times id 0
STILL = fs.Model(lambda x, t: 0.0 * x, fs.schedules.EDM(), "x0", time=1)
LEVELS = [80.0, 10.0, 2.0, 0.7, 0.3]


def drawn(plan, n=N, **call):
    """The noises that a run of lcm over STILL draws, in order, [n] each."""
    call = {k: torch.zeros(1, n) if v is ... else v for k, v in call.items()}
    run, found = Run(plan, **call), []
    begun = run.row == 1 and plan.sigma[0] == 0 and call.get("start") is None
    while True:
        if found or begun or call.get("shape"):
            found.append(run.x[0] / float(plan.sigma[run.row]))
        begun = True
        if run.done:
            return found
        run.step(torch.zeros_like(run.model_input))


def lcm(levels=LEVELS, **options):
    return fs.solvers.lcm(STILL, levels, **options)


def apart(*runs):
    """Are no two of the noises that these runs drew correlated by .01?"""
    noises = torch.stack([n for run in runs for n in run])
    return float((torch.corrcoef(noises) - torch.eye(len(noises))).abs().max()) < 0.01


def philox(seed, id_, stage, n=N):
    return normal(torch.tensor([seed]), torch.tensor([id_]), n, stage)[0]


# -- noises that must differ -----------------------------------------------------------------------
def test_runs_that_follow_one_another_draw_nothing_twice():
    """A run from noise, an image of it, a refiner below where it ended and a third stage, one seed:
    of their 16 noises no two are correlated by .01.
    """
    whole, image = lcm(), lcm(start=1)
    runs = [
        drawn(whole, shape=(1, N), seed=7),
        drawn(image, latent=..., seed=7),
        drawn(lcm(LEVELS[1:]), latent=..., start=1, seed=7, stage=2),
        drawn(image, latent=..., seed=7, stage=3),
    ]
    assert [len(run) for run in runs] == [5, 4, 3, 4]
    assert apart(*runs)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((lcm(), {"shape": (1, N)}), (lcm(start=2), {"latent": ...})),
        ((lcm(LEVELS[:3]), {"shape": (1, N)}), (lcm(LEVELS[2:]), {"latent": ..., "start": 1})),
        ((lcm(LEVELS[1:3]), {"shape": (1, N)}), (lcm(LEVELS[2:]), {"latent": ..., "start": 1})),
        ((lcm(LEVELS[:3]), {"shape": (1, N)}), (lcm(start=2), {"latent": ..., "start": 1})),
        ((lcm(inpaint=True), {"shape": (1, N)}), (lcm(start=1, inpaint=True), {"latent": ...})),
    ],
    ids=["img2img", "refiner", "refiner of a part", "a rest of the whole", "inpainting"],
)
def test_the_second_run_of_a_seed_draws_anew(first, second):
    one, two = (drawn(plan, seed=7, **call) for plan, call in (first, second))
    assert apart(one, two)
    plan, call = second
    if "start" not in call or plan.sigma[0]:
        assert not apart(one, drawn(plan, seed=7, **call | {"stage": 0})), "the bound can be missed"


def test_calls_without_a_seed_draw_anew():
    one, two = (drawn(lcm(), shape=(1, N)) for _ in range(2))
    assert apart(one, two)


def variance(levels, first):
    """Of euler_ancestral on GAUSSIAN from a variance at the first level: x' = (down/rho) x +
    (1 - down/rho) x/(1 + rho²) + up n.
    """
    for high, low in zip(levels[:-1], levels[1:], strict=True):
        up = low * (high**2 - low**2) ** 0.5 / high
        keep = (low**2 - up**2) ** 0.5 / high
        first = (keep + (1 - keep) / (1 + high**2)) ** 2 * first + up**2
    return first


@pytest.mark.parametrize(
    ("levels", "cut"),
    [([10.0, 2.0, 0.7, 0.3, 0.0], 1), ([*np.geomspace(10.0, 0.1, 8), 0.0], 4)],
    ids=["cut at 2", "cut in the middle"],
)
def test_a_base_and_a_refiner_spread_as_one_chain(levels, cut):
    """std .6472 and .7440, to 5 deviations of its estimate."""
    base, refiner = (
        fs.solvers.euler_ancestral(GAUSSIAN, part) for part in (levels[: cut + 1], levels[cut:])
    )
    right = variance(levels, levels[0] ** 2) ** 0.5
    assert abs(right - (0.6472, 0.7440)[cut > 1]) < 1e-4

    def std(**second):
        x = Sampler(base, GAUSSIAN)(noise=unit(4, N // 4), seed=3)
        return float(Sampler(refiner, GAUSSIAN)(latent=x, start=1, seed=3, **second).std())

    most = 5 * right / (2 * N) ** 0.5
    assert abs(std() - right) < most
    assert abs(std(stage=0) - right) > 3 * most, "the bound can be missed"


# -- noises that must agree ------------------------------------------------------------------------
STOCHASTIC = {
    "euler_ancestral": {},
    "ddim": {"eta": 1.0},
    "dpmpp_2m_sde": {},
    "lcm": {},
    "heun": {"s_churn": 3.0},
}


def state_at(plan, row, **call):
    """The state as that row begins, and at the end of the run."""
    run = Run(plan, **call)
    while run.row < row:
        run.step(net(run.model_input, run.t))
    x = run.x.clone()
    return x, finish(run).x


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_run_resumed_ends_as_if_it_had_not_stopped(name):
    plan = plan_of(name, 6, EDM, **STOCHASTIC[name])
    for row in plan.entries[1:]:
        x, end = state_at(plan, row, noise=unit(), seed=5)
        assert same(finish(Run(plan, latent=x, start=row, seed=5)).x, end)
        engine = fs.Engine(net, (2, 5))
        ticket = engine.submit(plan, latent=x[:1], start=row, seed=5)
        engine.run()
        assert same(ticket.result(), end[:1])


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("name", ["euler_ancestral", "ddim", "lcm"])
def test_a_rest_of_the_grid_draws_what_the_whole_draws_there(roads, name, road):  # noqa: F811
    plan = plan_of(name, 6, EDM, **STOCHASTIC[name])
    for k in range(6):
        x, end = state_at(plan, k + 1, noise=unit(), seed=5)
        assert same(roads[road](plan.remake(start=k), latent=x, start=1, seed=5), end)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_ids_are_places_in_the_whole_grid(name):
    plan = plan_of(name, 6, EDM, **STOCHASTIC[name])
    steps = lambda plan: [k for row in plan.ids.tolist() for k in row if k > 0]
    for k in range(6):
        image = plan.remake(start=k)
        assert steps(image) == [place for place in steps(plan) if place > k]
        assert image.remake().ids.tolist() == plan.ids.tolist()


def test_an_image_run_resumed_is_that_run():
    plan = plan_of("euler_ancestral", 6, EDM, start=2)
    for row in range(2, plan.rows - 1):
        x, end = state_at(plan, row, latent=unit(seed=4), seed=5)
        assert same(finish(Run(plan, latent=x, start=row, seed=5)).x, end)


def test_the_start_the_image_and_the_known_image_are_one_noise():
    """At sigma the known image stands at alpha known + sigma n with the n the run began with: a
    known image that is the image changes nothing at the first point, whatever the mask; at later
    ones the kept part is known + sigma' n.
    """
    image, mask = unit(1, 3, 40, seed=1), unit(1, 3, 40, seed=2).sigmoid()
    for stage in (None, 0, 5):
        plan = lcm(start=1, inpaint=True)
        words = {"latent": image, "seed": 7, "stage": stage}
        plain, masked = Run(plan, **words), Run(plan, **words, mask=mask, known=image)
        n = philox(7, 0, 1 if stage is None else stage, 120).view(1, 3, 40)
        assert same(plain.x, image + 10.0 * n)
        assert torch.allclose(masked.x, plain.x, rtol=0, atol=1e-5)
        keep = Run(plan, **words, mask=torch.ones(1, 1, 1), known=image)
        while not keep.done:
            assert torch.allclose(
                keep.x, image + float(plan.sigma[keep.row]) * n, rtol=0, atol=1e-4
            )
            keep.step(0 * keep.model_input)
    begun = Run(lcm(inpaint=True), shape=(1, 3, 40), seed=7, mask=mask, known=0 * image)
    assert torch.allclose(begun.x, 80.0 * philox(7, 0, 0, 120).view(1, 3, 40), rtol=1e-6, atol=0)


# -- what a run says and takes ---------------------------------------------------------------------
WHOLE, PART, IMAGE = plan_of("lcm", 5, EDM), lcm(LEVELS[1:]), lcm(start=2)
X = unit()


@pytest.mark.parametrize(
    ("plan", "call", "stage"),
    [
        (WHOLE, {"noise": X}, 0),
        (WHOLE, {"shape": (3, 2, 5)}, 0),
        (WHOLE, {"latent": X, "start": 1}, 0),
        (WHOLE, {"latent": X, "start": 3}, 0),
        (PART, {"noise": X}, 0),
        (PART, {"latent": X, "start": 1}, 1),
        (PART, {"latent": X, "start": 2}, 0),
        (IMAGE, {"latent": X}, 1),
        (IMAGE, {"latent": X, "noise": unit(seed=1)}, 1),
        (IMAGE, {"latent": X, "start": 0}, 1),
        (IMAGE, {"latent": X, "start": 1}, 0),
        (IMAGE, {"latent": X, "start": 2}, 1),
        (lcm(start=0), {"latent": X}, 1),
        (WHOLE.remake(level=2.0), {"latent": X}, 1),
        (WHOLE.remake(level=2.0), {"latent": X, "start": 1}, 1),
        (WHOLE.remake(strength=0.4), {"latent": X}, 1),
        (WHOLE.remake(strength=0.4), {"latent": X, "start": 1}, 0),
        (fs.Plan.from_bytes(PART.to_bytes()), {"latent": X, "start": 1}, 1),
        (fs.solvers.lcm(fs.schedules.Flow(), fs.grids.uniform(fs.schedules.Flow(), 3),
                        prediction="flow"), {"latent": X, "start": 1}, 0),
        (fs.solvers.lcm(fs.schedules.Flow(), fs.grids.karras(fs.schedules.Flow(), 3),
                        prediction="flow"), {"latent": X, "start": 1}, 0),
    ],
)  # fmt: skip
def test_the_stage_by_how_a_run_begins(plan, call, stage):
    run = Run(plan, **call, seed=3)
    assert run.stages.tolist() == [stage] * 3 and run.stages.dtype == torch.int64
    end = finish(run).x
    assert same(finish(Run(plan, **call, seed=3, stage=stage)).x, end)
    assert same(finish(Run(plan, **call, seed=3, stage=run.stages)).x, end)
    assert not same(finish(Run(plan, **call, seed=3, stage=stage + 1)).x, end)


def test_a_stage_for_each_sample(roads):  # noqa: F811
    stages = [0, 2**32 - 1, 6]
    for given in (stages, np.array(stages), torch.tensor(stages), tuple(stages)):
        run = Run(WHOLE, noise=X, seed=3, stage=given)
        assert run.stages.tolist() == stages
        end = finish(run).x
        for b, stage in enumerate(stages):
            alone = Run(WHOLE, noise=X[b : b + 1], seed=3 + b, stage=stage)
            assert same(finish(alone).x, end[b : b + 1])
        for road in ROADS:
            assert same(roads[road](WHOLE, noise=X, seed=3, stage=given), end)
    assert Run(WHOLE, noise=X, seed=3, stage=[0, 0, 0]).stages.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "stage", [-1, 2**32, 1.0, True, "1", [1, 2], [0, 1, 2**32], torch.ones(3), torch.ones(2).long()]
)
def test_a_stage_that_is_none_is_refused(stage):
    for make in (
        lambda: Run(WHOLE, noise=X, stage=stage),
        lambda: Sampler(WHOLE, net)(noise=X, stage=stage),
    ):
        with pytest.raises(ValueError, match="stage is .*; a whole number from 0 to 2"):
            make()


def test_a_run_begun_again_has_the_stage_of_how_it_begins():
    other = fs.solvers.lcm(STILL, [70.0, 10.0, 2.0, 0.7, 0.3, 0.1])
    plan = fs.solvers.lcm(STILL, [80.0, 10.0, 2.0, 0.7, 0.3, 0.1])
    run = Run(plan, noise=X, seed=3)
    for made, begin, stage in [
        (other, {"latent": X, "start": 1}, 1),
        (other, {"noise": X}, 0),
        (plan, {"noise": X}, 0),
        (other, {"latent": X, "start": 1}, 1),
        (plan, {"latent": X, "start": 1}, 0),
    ]:
        run.restart(**begin, seed=3, plan=made)
        assert run.stages.tolist() == [stage] * 3
        assert same(finish(run).x, finish(Run(made, **begin, seed=3)).x)
    run = Run(plan, noise=X, seed=3, stage=5)
    run.restart(latent=X, start=1, seed=3, plan=other)
    assert run.stages.tolist() == [5] * 3, "one that was given stays"


def test_a_solver_of_ones_own_numbers_its_noises_by_place():
    def mine(start=None):
        b = Builder(fs.schedules.EDM(), LEVELS, prediction="x0", start=start)
        for i in range(b.n):
            b.row(b.t[i], to=b.t[i + 1], x=M + b.sigma[i + 1] * b.noise(i))
        return b.build("mine", order=1)

    assert mine().ids.ravel().tolist() == [-1, 1, 2, 3, 4, -1]
    assert mine(start=2).ids.ravel().tolist() == [0, 3, 4, -1]


def test_what_a_noise_is():
    """Run's noises are normal(seed, id, stage), by the definition in plain torch."""
    for stage in (0, 1, 2**32 - 1):
        found = drawn(lcm(), n=1000, shape=(1, 1000), seed=7, stage=stage)
        for k, noise in enumerate(found):
            assert torch.allclose(noise, philox(7, k, stage, 1000), rtol=1e-6, atol=0)


# -- k_sample --------------------------------------------------------------------------------------
def denoise(x, sigma):
    return 0.5 * x / (1 + tell(sigma, x))


@pytest.mark.parametrize("name", STOCHASTIC)
def test_k_sample_draws_what_a_run_draws(name):
    model = fs.Model(denoise, fs.schedules.EDM(), "x0", time=1)
    plan = plan_of(name, 5, model, **STOCHASTIC[name])
    z = unit(2, 3, 4)
    for stage in (None, 0, 4):
        right = Sampler(plan, model)(noise=z, seed=7, stage=stage)
        got = k_sample(plan, denoise, z * plan.init_scale, disable=True, seed=7, stage=stage)
        assert torch.allclose(got, right, rtol=1e-5, atol=1e-5)
        assert name == "heun" or same(got, right)
    again = k_sample(plan, denoise, z * plan.init_scale, disable=True, seed=7)
    other = k_sample(plan, denoise, z * plan.init_scale, disable=True, seed=8)
    state = torch.random.get_rng_state()
    assert same(k_sample(plan, denoise, z * plan.init_scale, disable=True, seed=7), again)
    assert not same(other, again) and torch.equal(torch.random.get_rng_state(), state)


def test_k_sample_has_stage_1_where_another_run_left_off():
    still = lambda x, sigma: 0.0 * x
    for plan, x, stage in [(PART, X * 10.0, 1), (IMAGE, X, 1), (lcm(), X * 80.0, 0)]:
        got = [k_sample(plan, still, x, disable=True, seed=7, stage=s) for s in (None, 0, 1)]
        assert [same(got[0], one) for one in got[1:]] == [stage == 0, stage == 1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"stage": 1}, "stage=1 without seed="),
        ({"seed": 1, "noise_sampler": torch.zeros_like}, "seed= and noise_sampler="),
        ({"seed": 1.0}, "seed is a float"),
        ({"seed": 1, "stage": -1}, "stage is -1"),
        ({"seed": [1, 2]}, "seed holds 2 values"),
    ],
)
def test_k_sample_refuses_words_that_say_nothing(words, said):
    for plan in (lcm(), plan_of("dpmpp_2m", 4, EDM)):
        with pytest.raises((TypeError, ValueError), match=f"^k_sample: {said}"):
            k_sample(plan, denoise, X * 80.0, disable=True, **words)
