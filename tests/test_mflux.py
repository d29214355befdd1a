"""Our schedulers in mflux's hands: a host that does with them what its Config, LatentCreator and
denoise loops (0.24.0) do, on arrays of NumPy that have of MLX's what a scheduler may use.
"""

import abc
import importlib
import inspect
import sys
import types

import numpy as np
import pytest
import torch

import fastsample as fs

OURS = "fastsample.interop.mflux"
BASE = "mflux.models.common.schedulers.base_scheduler"
EPS = np.finfo(np.float32).eps
WEIGHTS = np.random.default_rng(1).normal(size=(6, 6)) / 3
FLOW = fs.Model(None, schedule=fs.schedules.Flow(), prediction="flow", time=1000)


class Array:
    """An array of MLX: its dtype is MLX's own word, and numbers leave it as NumPy's alone."""

    def __init__(self, values, dtype="float32"):
        self._values, self.dtype = np.array(values, np.dtype(dtype)), dtype

    def astype(self, dtype):
        return Array(self._values, dtype)

    def __array__(self, dtype=None, copy=None):
        return np.array(self._values, dtype)

    def __mul__(self, other):
        return Array(self._values * np.asarray(other, self._values.dtype), self.dtype)

    def __add__(self, other):
        return Array(self._values + np.asarray(other, self._values.dtype), self.dtype)

    def __getitem__(self, index):
        return Array(self._values[index], self.dtype)


Array.__module__ = "mlx.core"


@pytest.fixture
def host(monkeypatch):
    """The modules of mlx and mflux, and `run(name, steps, ...)`, which is mflux-generate."""
    names = BASE.split(".")
    for at in ["mlx", "mlx.core", *(".".join(names[:k]) for k in range(1, len(names) + 1))]:
        monkeypatch.setitem(sys.modules, at, types.ModuleType(at))
    mx, base = sys.modules["mlx.core"], sys.modules[BASE]
    mx.array, mx.float32, mx.float16 = Array, "float32", "float16"

    class BaseScheduler(abc.ABC):
        @property
        @abc.abstractmethod
        def sigmas(self): ...

        @abc.abstractmethod
        def step(self, noise, timestep, latents, **kwargs): ...

        def scale_model_input(self, latents, t):
            return latents

    class LinearScheduler(BaseScheduler):
        """n levels from 1 to 1/n, moved by the model's shift."""

        def __init__(self, config):
            level = np.linspace(1.0, 1.0 / config.num_inference_steps, config.num_inference_steps)
            e = np.exp(config.mu)
            self.sigmas = Array(np.append(e / (e + (1.0 / level - 1.0)), 0.0))

        sigmas = None

        def step(self, noise, timestep, latents, **kwargs):
            h = np.float32(self.sigmas[timestep + 1]) - np.float32(self.sigmas[timestep])
            return latents + (noise * h).astype(latents.dtype)

    base.BaseScheduler = BaseScheduler
    sys.modules["mflux.models.common.schedulers"].LinearScheduler = LinearScheduler
    monkeypatch.delitem(sys.modules, OURS, raising=False)
    yield types.SimpleNamespace(base=BaseScheduler, linear=LinearScheduler)
    sys.modules.pop(OURS, None)


def external(host, name):
    """The class that a dotted --scheduler names, as mflux looks it up."""
    module, _, name = name.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    assert inspect.isclass(found) and issubclass(found, host.base)
    return found


def velocity(x, sigma):
    return np.tanh(x @ WEIGHTS + sigma) * (1.3 - sigma) + 0.2 * x


def generate(scheduler, latents, first=0, change=None, scales=True):
    """A denoise loop: the model is told the level of the step."""
    for t in range(first, len(np.array(scheduler.sigmas)) - 1):
        latents = scheduler.scale_model_input(latents, t) if scales else latents
        v = velocity(np.array(latents, np.float32), np.float32(scheduler.sigmas[t]))
        noise = Array(v.astype(np.float32), "float32")
        latents = scheduler.step(noise=noise, timestep=t, latents=latents, sigmas=scheduler.sigmas)
        latents = latents if change is None else change(t, latents)
    return latents


def config(steps, mu=0.8):
    return types.SimpleNamespace(num_inference_steps=steps, mu=mu)


def start(dtype="float32", seed=0):
    return Array(np.random.default_rng(seed).normal(size=(1, 16, 6)), dtype)


def network(x, t):
    return torch.from_numpy(velocity(x.numpy(), t.numpy().reshape(-1, 1, 1) / 1000).astype("f4"))


def sampled(plan, noise, **words):
    return fs.Sampler(plan, network)(noise=torch.from_numpy(np.array(noise, "f4")), **words).numpy()


def plan_of(n, solver="dpmpp_2m", shift=3.0):
    model = fs.Model(None, schedule=fs.schedules.Flow(shift), prediction="flow", time=1000)
    return fs.solvers.SOLVERS[solver](model, fs.grids.uniform(model.schedule, n))


def test_euler_takes_the_steps_of_mfluxs_own_scheduler(host):
    ours, theirs = external(host, f"{OURS}.euler")(config(6)), host.linear(config(6))
    assert np.array_equal(np.array(ours.sigmas), np.array(theirs.sigmas))
    assert np.array_equal(np.array(ours.timesteps), 1000 * np.array(theirs.sigmas)[:-1])
    got, want = np.array(generate(ours, start())), np.array(generate(theirs, start()))
    assert np.abs(got - want).max() <= 8 * EPS * np.abs(want).max()


@pytest.mark.parametrize("solver", ["dpmpp_2m", "unipc", "ipndm", "deis"])
def test_a_solver_stands_on_mfluxs_levels_and_ends_where_a_sampler_does(host, solver):
    scheduler = external(host, f"{OURS}.{solver}")(config(5))
    levels = np.array(host.linear(config(5)).sigmas, np.float64)
    want = sampled(fs.solvers.SOLVERS[solver](FLOW, levels), start())
    for _ in range(2):  # and once more with the same scheduler
        got = np.array(generate(scheduler, start()))
        assert np.abs(got - want).max() <= 16 * EPS * np.abs(want).max()


def test_a_plan_of_the_environment_runs_with_the_amplitude_that_its_search_found(
    host, tmp_path, monkeypatch
):
    plan = plan_of(5)
    M = plan.M.copy()
    M[0, 0, 0] *= 1.25
    monkeypatch.setenv("FASTSAMPLE_PLAN", str(tmp_path / "a.fsplan"))
    for one in (plan, plan.with_numbers(M=M)):
        one.save(tmp_path / "a.fsplan")
        scheduler = external(host, f"{OURS}.Plan")(config(5))
        want = sampled(one, start())
        got = np.array(generate(scheduler, start()))
        assert np.abs(got - want).max() <= 16 * EPS * np.abs(want).max()
    with pytest.raises(ValueError, match="plan multiplies noise by 1.25, and the loop of this"):
        generate(external(host, f"{OURS}.Plan")(config(5)), start(), scales=False)


def test_an_image_begins_at_its_step(host):
    made = external(host, f"{OURS}.Scheduler")
    plan = plan_of(6)
    own = type("Mine", (made,), {"made": lambda self, config: plan})
    scheduler = own(config(6))
    noised = start(seed=3)
    got = np.array(generate(scheduler, noised, first=2))
    image = plan.remake(start=2)
    x = torch.from_numpy(np.array(noised, "f4"))
    want = fs.Sampler(image, network)(latent=x, start=1).numpy()
    assert np.abs(got - want).max() <= 16 * EPS * np.abs(want).max()


def test_narrow_latents_keep_a_float32_state_and_what_a_loop_changes_is_taken(host):
    scheduler = external(host, f"{OURS}.dpmpp_2m")(config(8))
    levels = np.array(host.linear(config(8)).sigmas, np.float64)
    run = fs.Run(fs.solvers.dpmpp_2m(FLOW, levels), noise=torch.from_numpy(np.array(start(), "f4")))
    moved = generate(scheduler, start("float16"), change=lambda t, x: x * 0.5 if t == 3 else x)
    noise = torch.from_numpy(np.array(start("float16"), "f4"))
    run = fs.Run(fs.solvers.dpmpp_2m(FLOW, levels), latent=noise, start=1)
    for t in range(8):
        seen = run.x.half().float() if t else run.x
        run.step(torch.from_numpy(velocity(seen.numpy(), np.float32(levels[t])).astype("f4")))
        if t == 3:
            run.x = (run.x.half() * 0.5).float()
    assert moved.dtype == "float16"
    assert np.array_equal(np.array(moved), run.x.half().numpy())


def test_what_mfluxs_loop_cannot_run_is_refused_in_a_sentence(host, monkeypatch, tmp_path):
    monkeypatch.delenv("FASTSAMPLE_PLAN", raising=False)
    with pytest.raises(ValueError, match="FASTSAMPLE_PLAN is not set; the path of an .fsplan"):
        external(host, f"{OURS}.Plan")(config(5))
    (tmp_path / "text").write_text("no plan")
    for path, why in (("absent.fsplan", "No such file"), (".", "Is a dir"), ("text", "not a")):
        monkeypatch.setenv("FASTSAMPLE_PLAN", str(tmp_path / path))
        with pytest.raises(ValueError, match=f"FASTSAMPLE_PLAN is .*{why}.*an .fsplan is acc"):
            external(host, f"{OURS}.Plan")(config(5))
    with pytest.raises(ValueError, match="asks the model 9 times in 5 steps, and mflux once a"):
        external(host, f"{OURS}.heun")(config(5))
    with pytest.raises(NotImplementedError, match=r"made\(config\) -> Plan is yours"):
        external(host, f"{OURS}.Scheduler")(config(5))
    made = external(host, f"{OURS}.Scheduler")
    mine = lambda plan: type("Mine", (made,), {"made": lambda self, config: plan})(config(4))
    vp = fs.Model(None, fs.schedules.VP(), "flow", time=1)
    for plan, said in (
        (plan_of(4, "euler_ancestral"), "the plan draws noise, and mflux gives a scheduler no"),
        (fs.solvers.ddim(vp, fs.grids.uniform(vp.schedule, 4)), "made for schedule"),
        (plan_of(6).remake(start=2), "begins from an image"),
        ("a.fsplan", "plan is a str"),
    ):
        with pytest.raises((ValueError, TypeError), match=said):
            mine(plan)
    scheduler, latents = mine(plan_of(4)), start()
    with pytest.raises(FloatingPointError, match="Mine.step: .*not finite|non-finite"):
        for t in range(4):
            latents = scheduler.step(start() * (1.0 if t < 2 else float("nan")), t, latents)
    assert t == 3
    scheduler = mine(plan_of(4))
    with pytest.raises(ValueError, match="Mine.step: latents holds NaN or Inf in sample 0"):
        scheduler.step(start(), 0, start() * float("nan"))
    scheduler.step(start(), 0, start())
    with pytest.raises(ValueError, match="step 2 after step 0; every step in its turn"):
        scheduler.step(start(), 2, start())


def test_without_mflux_the_module_loads_and_asks_for_no_mlx(monkeypatch):
    monkeypatch.delitem(sys.modules, OURS, raising=False)
    assert importlib.import_module(OURS).BaseScheduler is object
    assert "mlx" not in sys.modules and "mflux" not in sys.modules
    monkeypatch.delitem(sys.modules, OURS)


def test_a_solver_that_was_registered_before_is_one_of_them(monkeypatch):
    def mine(model, grid, *, start=None, inpaint=False, clip=0.0):
        return fs.solvers.euler(model, grid)

    monkeypatch.setitem(fs.solvers.SOLVERS, "mine", mine)
    monkeypatch.delitem(sys.modules, OURS, raising=False)
    assert issubclass(importlib.import_module(OURS).mine, importlib.import_module(OURS).Solver)
    monkeypatch.delitem(sys.modules, OURS)
