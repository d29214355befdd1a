"""What row 0 does to unit noise reaches every road: Plan.init_scale, and runs that somebody else
begins.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import grids, solvers
from fastsample.interop import k_sample
from fastsample.model import to_kind
from fastsample.plan import Plan, PlanError
from fastsample.schedules import EDM, VP, Flow
from tests import interpreter
from tests.cases import louder

EPS = np.finfo(np.float64).eps
EDM80, FLOW = EDM(sigma_max=80.0), Flow(shift=3.0)
Z = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def net(x, t, **cond):
    """A smooth output of everything."""
    return torch.tanh(x + 0.1 * torch.sin(t.to(x.dtype)).view(-1, 1, 1, 1)) + 0.2 * x.roll(1, -1)


def edm():
    return fs.Model(net, EDM80, "edm")


def vp():
    return fs.Model(net, VP(), "eps")


def flow():
    return fs.Model(net, FLOW, "flow", time=1000)


def below(schedule, n=5):
    """A grid that begins below the schedule's first level, as a search with a free start finds."""
    return grids.uniform(schedule, n + 1)[1:]


PLANS = {
    "usual": (edm(), lambda m: solvers.euler(m, grids.karras(EDM80, 5))),
    "amplitude": (edm(), lambda m: louder(solvers.euler(m, grids.karras(EDM80, 5)))),
    "quieter multistep": (vp(), lambda m: louder(solvers.dpmpp_2m(m, grids.karras(VP(), 5)), 0.7)),
    "churn": (edm(), lambda m: louder(solvers.heun(m, grids.karras(EDM80, 4), s_churn=1.0))),
    "flow from below": (flow(), lambda m: louder(solvers.euler(m, below(FLOW)), 1.1)),
    "flow multistep": (flow(), lambda m: louder(solvers.unipc(m, below(FLOW)))),
}
plans = pytest.mark.parametrize(("model", "make"), PLANS.values(), ids=PLANS)


def draws(plan):
    """A noise for each id, the same on every road."""
    noises = {}
    for k in dict.fromkeys(int(k) for k in plan.ids.ravel() if k >= 0):
        generator = torch.Generator().manual_seed(9 + k)
        noises[k] = torch.randn(Z.shape, generator=generator, dtype=Z.dtype)
    return noises, iter(noises.values())


def by_sampler(plan, model):
    noises, _ = draws(plan)
    sample = fs.Sampler(plan, model, state_dtype=Z.dtype)
    return sample(noise=Z, noise_source=lambda row, k: noises[k])


def by_run(plan, model):
    """A Run from row 1, with what row 0 draws."""
    noises, _ = draws(plan)
    first, at = Z * plan.init_scale, plan.layout.noise(0)
    for k in range(plan.L):
        if plan.reads[0] >> (at + k) & 1:
            first = first + plan.M[0, 0, at + k] * noises[int(plan.ids[0, k])]
    drawn = lambda row, k: noises[k]
    run = fs.Run(plan, latent=first, start=1, state_dtype=Z.dtype, noise_source=drawn)
    while not run.done:
        run.step(net(run.model_input, run.t))
    return run.x


def by_interpreter(plan, model):
    noises, _ = draws(plan)
    asked = lambda x, t, row, call: [net(torch.tensor(x), torch.tensor(t)).numpy()]
    x, drawn = Z.numpy() * plan.init_scale, lambda k: noises[k].numpy()
    return torch.as_tensor(interpreter.run(plan, x, asked, drawn, first=1))


def by_k_sample(plan, model):
    schedule, (_, drawn) = model.schedule, draws(plan)

    def denoiser(y, sigma):
        t = schedule.time(-np.log(sigma[:1].numpy()))
        a, s = schedule.alpha(t), schedule.sigma(t)
        p, q = to_kind("x0", model.prediction, a, s, model.sigma_data)
        x = float(a[0]) * y
        told = torch.as_tensor(model.times(t)).expand(len(x))
        return float(p[0]) * x + float(q[0]) * net(float(model.scales(t)[0]) * x, told)

    x = Z * plan.init_scale / plan.alpha[1]
    return k_sample(plan, denoiser, x, disable=True, noise_sampler=lambda a, b: next(drawn))


def by_scheduler(plan, model):
    pytest.importorskip("diffusers")
    scheduler = fs.FsScheduler.from_plan(plan)
    scheduler.set_timesteps(plan.nfe)
    x = Z * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        output = net(scheduler.scale_model_input(x, t), t.expand(len(x)))
        x = scheduler.step(output, t, x).prev_sample
    return x


ROADS = {
    "Run from row 1": by_run,
    "interpreter": by_interpreter,
    "k_sample": by_k_sample,
    "FsScheduler": by_scheduler,
    "remake": lambda plan, model: by_sampler(plan.remake(), model),
    "remake of a remake": lambda plan, model: by_sampler(plan.remake(2).remake(None), model),
    "file": lambda plan, model: by_run(Plan.from_bytes(plan.to_bytes()), model),
    "JSON": lambda plan, model: by_run(Plan.from_json(plan.to_json()), model),
    "padded": lambda plan, model: by_run(plan.padded(S=plan.S + 2, L=plan.L + 1), model),
}


# -- one answer ------------------------------------------------------------------------------------
# A pipeline's one draw stands for the two of a row 0 with churn (tests/test_diffusers_start.py),
# and the interpreter's row 0 draws its own.
NO_CHURN = ("FsScheduler", "interpreter")
PAIRS = [(a, b) for a in PLANS for b in ROADS if a != "churn" or b not in NO_CHURN]


@pytest.mark.parametrize(
    ("model", "make", "road"),
    [(*PLANS[a], ROADS[b]) for a, b in PAIRS],
    ids=[f"{b}, {a}" for a, b in PAIRS],
)
def test_every_road_ends_where_sampler_ends(model, make, road):
    """Within rounding: 64 ulps of the largest state, x/alpha in k_sample, a row, 16 rows at most;
    timesteps are float32 in diffusers.
    """
    plan = make(model)
    rounding = EPS if road is not by_scheduler else np.finfo(np.float32).eps
    bound = 64 * 16 * rounding * max(plan.init_scale, 1.0) / plan.alpha[1:].min()
    expected = by_sampler(plan, model)
    assert (road(plan, model) - expected).abs().max() <= bound
    if plan.init_scale != make(model).sigma[1]:  # and the level alone ends elsewhere
        assert (by_sampler(louder(plan, 1 / 1.3), model) - expected).abs().max() > 10 * bound


def test_the_searched_plan_of_the_embedded_model_keeps_its_figure():
    """Few Euler steps from 80: the search scales the noise, and the roads that begin a run
    themselves reach the same PSNR.
    """
    model = fs.models.fashion()
    z = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    teacher = fs.solvers.dpmpp_3m(model, fs.grids.karras(model.schedule, 24))
    search = fs.optimize.oss(model, z, budget=3, teacher=teacher, all_budgets=False)
    plan, target = search.plan, fs.Sampler(search.teacher, model)(noise=z)
    found = fs.Sampler(plan, model)(noise=z)
    amplitude = plan.note["found"]["amplitude"]
    assert plan.init_scale == amplitude * plan.sigma[1] and amplitude > 1.01
    denoiser = lambda x, sigma: model.fn(x, sigma)  # x0 of x, told sigma
    roads = {
        "k_sample": k_sample(plan, denoiser, z * plan.init_scale, disable=True),
        "remake": fs.Sampler(plan.remake(), model)(noise=z),
    }
    assert all(torch.equal(x, found) for x in roads.values())
    lost = fs.Sampler(louder(plan, 1 / amplitude), model)(noise=z)
    assert fs.metrics.psnr(found, target) > fs.metrics.psnr(lost, target) + 0.1


# -- the property ----------------------------------------------------------------------------------
@plans
def test_init_scale_is_row_zero_and_stays(model, make, tmp_path):
    plan = make(model)
    plan.save(tmp_path / "a.fsplan")
    forms = [
        plan.padded(S=plan.S + 1, G=2, L=plan.L + 1),
        fs.guidance.guided(plan),
        plan.with_note(a=1),
        plan.remake(),
        plan.remake(1).remake(),
        Plan.load(tmp_path / "a.fsplan"),
        Plan.from_json(plan.to_json()),
    ]
    assert isinstance(plan.init_scale, float) and plan.init_scale == plan.M[0, 0, 0] > 0
    assert all(p.init_scale == pytest.approx(plan.init_scale, rel=4 * EPS, abs=0) for p in forms)
    assert all(p.init_scale == plan.init_scale for p in (forms[3], *forms[:3], *forms[5:]))
    assert f"init_scale     {plan.init_scale:.6g} " in plan.describe()
    zero = np.zeros(4)
    x = interpreter.step(plan, 0, np.ones(4), [zero] * plan.S, None, lambda k: zero)[0]
    assert (x == plan.init_scale).all()


def test_a_row_that_reads_no_noise_has_scale_zero():
    plan = solvers.euler(edm(), grids.karras(EDM80, 3))
    assert replace(plan, reads=[0, *plan.reads[1:]]).init_scale == 0.0


@pytest.mark.parametrize("begin", [{"start": 0}, {"start": 2}, {"strength": 0.5}])
@plans
def test_a_plan_for_an_image_has_none(model, make, begin):
    """The image is noised to the schedule's own level whatever the amplitude was."""
    plan = make(model)
    image = plan.remake(**begin)
    told = "^init_scale: the plan was made with start= and begins from an image; .* has one$"
    with pytest.raises(PlanError, match=told):
        _ = image.init_scale
    assert "init_scale" not in image.describe()
    assert np.array_equal(image.M, louder(plan).remake(**begin).M)
    assert image.consistency() <= 1e-12


def test_remake_of_a_plan_without_amplitude_changes_nothing():
    plan = solvers.dpmpp_2m(edm(), grids.karras(EDM80, 5))
    assert plan.remake().to_bytes() == plan.to_bytes() == plan.remake(2).remake().to_bytes()
    assert "found" not in plan.remake(2).note


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        ("oss", "remake: the note's found: 'oss'; a dict"),
        ({"amplitude": "1"}, "remake: the note's found: amplitude = '1'; a number"),
        ({"amplitude": math.inf}, "amplitude = inf"),
        ({"amplitude": -1.0}, "amplitude = -1.0"),
    ],
)
def test_a_note_that_no_search_wrote_is_refused(found, sentence):
    plan = solvers.euler(edm(), grids.karras(EDM80, 5), start=1)
    with pytest.raises(PlanError, match=sentence):
        replace(plan, note={**plan.note, "found": found}).remake()


def test_run_says_what_a_state_at_row_one_is():
    plan = solvers.euler(edm(), grids.karras(EDM80, 3))
    noise = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    state = r"start=1 needs the state at that row \(row 1: noise times plan.init_scale\)"
    with pytest.raises(ValueError, match=f"{state}; pass latent="):
        fs.Run(plan, noise=noise, start=1)
    row_0 = r"pass latent= with start=1 \(row 0 multiplies by plan.init_scale\)"
    with pytest.raises(ValueError, match=rf"already scaled by sigma\? {row_0}"):
        fs.Sampler(plan, edm())(noise=noise * plan.init_scale)
