"""A device without float64: all that is run, searched or judged there has the bits of the host. Run
by test_narrow.py.
"""

import copy
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import kernels, metrics, models, optimize, solvers
from fastsample.interop import k_sample
from fastsample.kernels import narrow
from fastsample.schedules import EDM, VP, DiscreteVP, Flow, TrigFlow
from tests import slim

LEVELS = [10.0, 5.0, 1.0, 0.3, 0.0]


@pytest.fixture(scope="module", autouse=True)
def device():
    with slim.there():
        yield


def unit(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def answer(x, t, **_):
    return x / (1 + t.view(-1, *[1] * (x.dim() - 1)) ** 2) + 0.1 * torch.sin(x)


MODEL = fs.Model(answer, EDM(), "x0")


def make(name, **words):
    return solvers.SOLVERS[name](MODEL, LEVELS, **words)


def same(do, *tensors, within=0.0):
    """do(*tensors) there, by the kernel in plain torch, is to the bit what that is on the host, or
    within so much.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTSAMPLE_BACKEND", "reference")
        here = do(*tensors)
    found = do(*(v.to(slim.DEVICE) for v in tensors))
    assert found.device.type == slim.DEVICE
    torch.testing.assert_close(found.cpu(), here, rtol=0, atol=within)


def test_the_stand_in_refuses_float64():
    x = torch.ones(2, device=slim.DEVICE)
    assert not narrow.has_float64(x.device) and narrow.has_float64(torch.device("cpu"))
    for wrong in (
        x.double,
        lambda: torch.tensor([1.0], device=slim.DEVICE, dtype=torch.float64),
        lambda: torch.ones(2, dtype=torch.float64).to(slim.DEVICE),
    ):
        with pytest.raises(TypeError, match="float64"):
            wrong()
    with pytest.raises(RuntimeError, match="tensors on slim and cpu"):
        x + torch.ones(2)


def test_noise_is_that_of_the_host():
    seeds = torch.tensor([3, -(2**62), 7])
    for ids in (torch.zeros(3, dtype=torch.int64), torch.tensor([1, 2, 2])):
        same(lambda s, i: kernels.normal(s, i, 37, torch.tensor([0, 5, 2**31 - 1])), seeds, ids)


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m", "unipc", "dpmpp_2m_sde", "lcm"])
def test_samplers(name):
    same(lambda z: fs.Sampler(make(name), MODEL)(noise=z, seed=3), unit(4, 6))


def test_guidance_images_and_known_areas():
    model = replace(MODEL, fn=lambda x, t, c: answer(x, t) * c.view(-1, 1))
    two = fs.Sampler(fs.guidance.guided(make("dpmpp_2m")), model)
    told = lambda z, c: two(noise=z, cond={"c": c}, uncond={"c": 0.5 * c}, guidance=2.0)
    same(told, unit(4, 6), torch.ones(4))
    same(lambda x: fs.Sampler(make("euler", start=2), MODEL)(latent=x, seed=1), unit(4, 6))
    inside = fs.Sampler(make("euler_ancestral", inpaint=True), MODEL)
    same(lambda z: inside(noise=z, seed=1, mask=(z > 0).float(), known=z), unit(4, 6))


def test_runs_their_density_and_a_state_that_breaks():
    def densities(z):
        run, found = fs.Run(make("euler_ancestral"), noise=z, seed=3), []
        while run.row < 3:
            f = answer(run.model_input, run.t)
            found.append(run.log_prob(f).to(z))
            run.step(f)
        return torch.stack(found)

    same(densities, unit(4, 6))
    broken = replace(MODEL, fn=lambda x, t: x * float("inf"))
    with pytest.raises(FloatingPointError, match="samples? 0"):
        fs.Sampler(make("euler"), broken)(noise=unit(2, 6).to(slim.DEVICE))
    with pytest.raises(ValueError, match="unit"):
        fs.Sampler(make("euler"), MODEL)(noise=9 * unit(2, 600).to(slim.DEVICE))


@pytest.mark.parametrize("name", ["dpmpp_2m", "euler_ancestral"])
def test_k_sample(name):
    words = {"seed": 3} if name != "dpmpp_2m" else {}
    same(lambda x: k_sample(make(name), answer, x * 10, disable=True, **words), unit(4, 6))


SOURCES = {
    "DDIMScheduler": {},
    "DDPMScheduler": {},
    "DPMSolverMultistepScheduler": {},
    "UniPCMultistepScheduler": {},
    "LCMScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "HeunDiscreteScheduler": {},
    "FlowMatchEulerDiscreteScheduler": {"shift": 3.0},
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("compat", ["diffusers", None])
def test_schedulers(name, compat):
    source = getattr(diffusers, name)(**SOURCES[name])

    def loop(x):
        scheduler = fs.FsScheduler.from_config(source, compat=compat)
        scheduler.set_timesteps(5, device=x.device)
        x, draws = x * float(scheduler.init_noise_sigma), torch.Generator().manual_seed(1)
        for t in scheduler.timesteps:
            f = torch.tanh(scheduler.scale_model_input(x, t))
            x = scheduler.step(f, t, x, generator=draws, return_dict=False)[0]
        return scheduler.add_noise(x, torch.ones_like(x), scheduler.timesteps[:1])

    same(loop, unit(2, 4, 4, 4))


def test_kernels_of_a_search_run_on_the_host():
    z = unit(1, 4, 6)
    there, c = z.to(slim.DEVICE), torch.ones(1, 4, 4)
    for here, found in (
        (kernels.moments([z], [z])[0], kernels.moments([there], [there])[0]),
        (
            kernels.cost_matrix([z], c, z),
            kernels.cost_matrix([there], c.to(slim.DEVICE), there),
        ),
    ):
        assert found.is_cpu and found.dtype == torch.float64 and torch.equal(found, here)
    i = torch.tensor([0, 1, -1, 3])
    same(lambda u, i: kernels.cost_gather([u], torch.ones(1, 4, 4).to(u), i).nan_to_num(), z, i)
    assert metrics.psnr(there, 1.01 * there) == metrics.psnr(z, 1.01 * z)


SLOW = pytest.param("search", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", ["oss", "fit", "gits", "ays", "polish", SLOW])
def test_searches_ask_the_model_there(name):
    """The same plans, to the bit, by a model that is told tensors of the device."""
    given = [3] if name == "search" else make("dpmpp_2m") if name == "polish" else 3
    words = {"held_out": unit(4, 6, seed=1)} if name == "search" else {"seed": 0}
    words |= {"steps": 8} if name == "ays" else {"teacher": 10}
    asked, found, B = set(), {}, 32 if name == "search" else 8

    def fn(x, t, c):
        asked.add((x.device.type, t.device.type, c.device.type))
        return answer(x, t) * c.view(-1, 1)

    for device in ("cpu", slim.DEVICE):
        at = lambda v, to=device: v.to(to) if isinstance(v, torch.Tensor) else v
        told = {k: at(v) for k, v in words.items()} | {"cond": {"c": at(torch.ones(B))}}
        search = getattr(optimize, name)
        found[device] = search(replace(MODEL, fn=fn), at(unit(B, 6)), given, **told)
    assert asked == {("cpu",) * 3, (slim.DEVICE,) * 3}
    cpu, there = (search.plans for search in found.values())
    assert cpu.keys() == there.keys()
    for m, plan in cpu.items():
        np.testing.assert_array_equal(plan.M, there[m].M)


def moved(model):
    """The embedded model there."""
    net = copy.deepcopy(model.fn)
    for part in net.modules():
        for kept in (part._parameters, part._buffers):
            kept.update({k: v.detach().to(slim.DEVICE) for k, v in kept.items() if v is not None})
    return replace(model, fn=net)


WORDS = [
    (EDM(), "x0"),
    (EDM(), "edm"),
    (Flow(3.0), "flow"),
    (TrigFlow(), "trigflow"),
    (DiscreteVP.scaled_linear(), "eps"),
    (VP(), "v"),
]


@pytest.mark.parametrize(("schedule", "prediction"), WORDS, ids=[w[1] for w in WORDS])
def test_the_embedded_model_and_exact_ones(schedule, prediction):
    model = models.fashion(schedule, prediction)
    plan = solvers.dpmpp_2m(model, fs.grids.fine(schedule, 2))

    def sample(z, label):
        own = model if label.is_cpu else moved(model)
        return fs.Sampler(plan, own)(noise=z, cond={"label": label})

    # a network's layers are taken apart there, and add up in another order
    same(sample, unit(2, 1, 28, 28), torch.tensor([1, 2]), within=1e-4)
    exact = models.analytic.ring().model(schedule, prediction=prediction)
    plan = solvers.heun(exact, fs.grids.fine(schedule, 2))
    same(lambda z: fs.Sampler(plan, exact)(noise=z), unit(4, 2))
