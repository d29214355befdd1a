"""Calls that no documentation shows: each is one sentence in the name of what was called, or does
what was meant; and what a notebook shows of an object is short.
"""

import copy
import math
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
import tomllib
import torch

import fastsample as fs
from fastsample import grids, metrics, solvers, trajectories
from fastsample.interop import k_sample
from fastsample.plan import PlanError
from fastsample.report.doctor import EXTRAS, doctor
from fastsample.schedules import EDM, Flow, Schedule, from_json

EDM80 = EDM()
GRID = grids.karras(EDM80, 4)
PLAN = solvers.dpmpp_2m(EDM80, GRID, prediction="x0")
NOISY = solvers.euler_ancestral(EDM80, GRID, prediction="x0")
MODEL = fs.Model(lambda x, t: 0.5 * x, EDM80, "x0")
Z = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
HALF = lambda x, t: 0.5 * x
NESTED = torch.nested.nested_tensor([torch.randn(3), torch.randn(4)])


# -- what an object is and shows -------------------------------------------------------------------
def test_plans_are_equal_by_value():
    again = solvers.dpmpp_2m(EDM80, GRID, prediction="x0")
    assert again is not PLAN and again == PLAN and hash(again) == hash(PLAN)
    assert {PLAN: 1}[again] == 1 and again.sha256 == PLAN.sha256
    assert PLAN.with_note(remark="another") != PLAN and PLAN != NOISY and PLAN != 3
    # the digest is the file's own
    data = PLAN.to_bytes()
    assert re.fullmatch("[0-9a-f]{64}", PLAN.sha256) and bytes.fromhex(PLAN.sha256) == data[56:88]


def test_a_note_stays_as_it_was_made():
    plan = PLAN.with_note(tree={"list": [1, [2]]})
    with pytest.raises(TypeError, match="note of a plan is read-only; plan.with_note"):
        plan.note["solver"] = "other"
    for change in (
        lambda note: note.pop("solver"),
        lambda note: note["tree"].update(a=1),
        lambda note: note["tree"]["list"].append(3),
        lambda note: note["tree"]["list"][1].clear(),
        lambda note: note["grid"].sort(),
    ):
        with pytest.raises(TypeError, match="read-only"):
            change(plan.note)
    with pytest.raises((AttributeError, FrozenInstanceError)):
        plan.note = {}
    free = copy.deepcopy(plan.note)
    free["solver"] = "mine"
    assert plan.note["solver"] == "dpmpp_2m"


def test_a_trajectory_says_its_sizes_and_no_numbers():
    said = repr(trajectories.record(PLAN, MODEL, Z))
    assert said == "Trajectory(4 evaluations of [2, 1, 4, 4], float32 on cpu)"


def test_dir_names_what_is_there():
    assert {"FsScheduler", "k_sample", "diffusers", "k_diffusion"} <= set(dir(fs.interop))
    assert all(not name.startswith("_") for name in dir(fs.interop))
    assert set(fs.__all__) <= set(dir(fs))


# -- tensors that are none -------------------------------------------------------------------------
ODD = {
    "meta": torch.randn(2, 4, device="meta"),
    "float8": Z.to(torch.float8_e4m3fn),
    "nested": NESTED,
    "complex": Z * 1j,
    "integers": torch.ones(2, 4, dtype=torch.int64),
    "sparse": torch.eye(3).to_sparse(),
    "a number": torch.tensor(1.0),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", ["noise", "latent"])
def test_tensors_that_no_run_begins_with(odd, name):
    start = {"start": 1} if name == "latent" else {}
    for door in (fs.Run, lambda plan, **words: fs.Sampler(plan, HALF)(**words)):
        with pytest.raises(TypeError, match=f": {name} is .*; a dense .*tensor .* is accepted$"):
            door(PLAN, **{name: ODD[odd]}, **start)


@pytest.mark.parametrize("odd", [name for name in ODD if name != "a number"])
def test_tensors_that_k_sample_refuses(odd):
    with pytest.raises(TypeError, match=r"^k_sample: x is .*; a .*tensor \[B, \*\].* is accepted$"):
        k_sample(PLAN, HALF, ODD[odd])


def test_the_device_without_numbers():
    with pytest.raises(
        ValueError, match="device='meta' holds no numbers; a device that does is accepted"
    ):
        fs.Run(PLAN, shape=(2, 4), seed=1, device="meta")


@pytest.mark.parametrize(
    "ask", [lambda f: fs.Sampler(PLAN, f)(noise=Z), lambda f: k_sample(PLAN, f, Z * 80)]
)
def test_a_complex_output_is_not_a_matter_of_dtype(ask):
    with pytest.raises(TypeError, match="returned torch.complex64.*; a real output is accepted$"):
        ask(lambda x, t: x * 1j)


# -- arguments of another kind ---------------------------------------------------------------------
def test_models_that_are_none():
    for model, found in (
        (5, "a int"),
        (None, "a NoneType"),
        (EDM80, "a EDM"),
        ([], "an empty list"),
    ):
        told = r"a callable\(x, t, \*\*cond\) -> prediction, or a list of 1, is accepted"
        with pytest.raises(TypeError, match=f"^Sampler: model is {found}; {told}"):
            fs.Sampler(PLAN, model)
    with pytest.raises(TypeError, match="^Sampler: model is a list with a int; a callable"):
        fs.Sampler(PLAN, [HALF, 5])
    both = solvers.Builder([MODEL, MODEL], GRID)
    both.row(GRID[0], to=GRID[1], x=solvers.X, call=1)
    plan = both.build("two", consistent=False)
    with pytest.raises(
        TypeError, match=r"^Sampler: 1 model\(s\) for a plan that asks model 1; a list"
    ):
        fs.Sampler(plan, HALF)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ((PLAN, HALF, Z), "model is a function; a fastsample.Model is needed"),
        ((5, MODEL, Z), "plan is a int; a fastsample.Plan is needed"),
        ((PLAN, MODEL, [1.0]), r"noise is a list; a tensor \[B,\*\] is needed"),
        ((PLAN, MODEL, torch.tensor(1.0)), r"noise is a Tensor; a tensor \[B,\*\] is needed"),
        ((PLAN, EDM80, Z), "model is a EDM; a fastsample.Model is needed"),
    ],
)
def test_what_no_run_can_be_recorded_of(given, sentence):
    for door in (trajectories.record, lambda *a: next(trajectories.visits(*a))):
        with pytest.raises(TypeError, match=f"^trajectories: {sentence}$"):
            door(*given)


def test_bytes_of_every_kind():
    data = PLAN.to_bytes()
    wide = np.frombuffer(data + data, np.uint8).reshape(2, -1)
    for form in (
        bytearray(data),
        memoryview(data),
        memoryview(wide[1]),
        memoryview(data + b"x")[:-1],
    ):
        assert fs.Plan.from_bytes(form) == PLAN
    for form in ("abc", [1, 2], None, np.frombuffer(data, np.uint8)):
        with pytest.raises(
            PlanError, match="^load: a .*; the bytes of a .fsplan file are accepted"
        ):
            fs.Plan.from_bytes(form)


@pytest.mark.parametrize("extra", [[1], "ab", 3, {"cond"}])
def test_extra_args_are_keywords(extra):
    with pytest.raises(TypeError, match="^k_sample: extra_args is a .*; a dict of the model's key"):
        k_sample(PLAN, HALF, Z * 80, extra_args=extra)


def test_a_callback_is_looked_at_before_the_run():
    def never(x, sigma):
        raise AssertionError

    with pytest.raises(TypeError, match="^k_sample: callback is a int; a callable.dict., or None"):
        k_sample(PLAN, never, Z * 80, callback=3)


def test_a_noise_sampler_goes_by_its_own_name():
    for bad in (5, torch.ones(3)):
        with pytest.raises(TypeError, match="^k_sample: noise_sampler is a .*; a callable"):
            k_sample(NOISY, HALF, Z * 80, noise_sampler=bad)
    for gave in (3, None, torch.ones(1), Z[:1], Z.long()):
        told = r"^k_sample: noise_sampler gave .* for an x of \[2, 1, 4, 4\]; a floating tensor"
        with pytest.raises(ValueError, match=told):
            k_sample(NOISY, HALF, Z * 80, noise_sampler=lambda a, b, gave=gave: gave)


def test_solvers_and_numbers_of_the_comparisons_by_hand():
    with pytest.raises(ValueError, match="solver='bogus'; None, or one of ddim"):
        metrics.best_hand_made(MODEL, Z, 3, Z, solver="bogus")
    for n in (0, -1, 2.5, "3", True, math.nan):
        with pytest.raises(ValueError, match="^hand_made: nfe=.*; a whole number of at least 1"):
            metrics.hand_made(EDM80, n)
        with pytest.raises(ValueError, match="^by_hand: nfe=.*; a whole number of at least 1"):
            metrics.by_hand(MODEL, n)
    for grid in metrics.hand_made(EDM80, 1).values():
        assert len(grid) == 2 and grids.check(EDM80, grid) is not None


def test_what_is_no_noise_no_size():
    with pytest.raises(TypeError, match="^metrics.run: noise is a int; a tensor .* is needed$"):
        metrics.run(PLAN, MODEL, 5)
    with pytest.raises(
        TypeError, match="^oss: z is a int; unit noise .*, or its shape, is needed$"
    ):
        fs.optimize.oss(MODEL, 5, budget=2)
    for size in ("x", 0, 1.5, None):
        with pytest.raises(PlanError, match="^padded: G=.* is .* the plan's own 1; pass at least"):
            PLAN.padded(G=size)


# -- a schedule of one's own -----------------------------------------------------------------------
class Straight(Schedule):
    """Rectified flow, written by hand as the docstring of Schedule says."""

    t_min, t_max = 1e-3, 1.0

    def _point(self, t):
        return 1.0 - t, t, np.log1p(-t) - np.log(t)

    def _time(self, level):
        return 1.0 / (1.0 + np.exp(level))


class Scaled(Straight):
    def __init__(self, scale):
        self.scale = scale

    def _point(self, t):
        return 1.0 - t, self.scale * t, np.log1p(-t) - np.log(t) - math.log(self.scale)

    def _time(self, level):
        return 1.0 / (1.0 + self.scale * np.exp(level))


def test_a_subclass_is_a_schedule_like_any_other():
    schedule, grid = Straight(), grids.uniform(Straight(), 4)
    plan = solvers.ddim(schedule, grid, prediction="flow")
    own = solvers.ddim(Flow(), grids.uniform(Flow(), 4), prediction="flow")
    np.testing.assert_allclose(plan.M, own.M, rtol=0, atol=1e-15)
    assert plan.note["schedule"] == {"name": "Straight"}
    image = plan.remake(2)
    assert image.nfe == 2 and image.remake() == plan == fs.Plan.from_bytes(plan.to_bytes()).remake()
    fs.Sampler(plan, fs.Model(HALF, schedule, "flow"))(noise=Z)
    with pytest.raises(ValueError, match="the plan was made for schedule"):
        fs.Sampler(plan, fs.Model(HALF, Scaled(2.0), "flow"))
    moved = solvers.ddim(Scaled(2.0), grid, prediction="flow")
    assert moved.note["schedule"] == {"name": "Scaled", "scale": 2.0}
    assert moved.remake(1).remake() == moved and from_json({"name": "Scaled", "scale": 2.0})
    with pytest.raises(ValueError, match="schedules.from_json: .*; a dict whose name is one of"):
        from_json({"name": "Crooked"})
    with pytest.raises(
        ValueError, match="schedules.from_json: .*the parameters that to_json writes"
    ):
        from_json({"name": "Scaled", "other": 2.0})


# -- an installation -------------------------------------------------------------------------------
def test_doctor_knows_the_extras_of_the_project():
    root = Path(__file__).resolve().parents[1]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    own = {name: {re.match(r"[\w-]+", need)[0] for need in needs} for name, needs in extras.items()}
    for extra, names in EXTRAS.items():
        assert set(names) <= own[extra], extra
    found = dict(doctor())
    assert {"k-diffusion", "safetensors", "diffusers", "matplotlib"} <= found.keys()
    # what is offered supplies what is missing
    for name, said in found.items():
        for extra in re.findall(r"fastsample\[(\w+)\]", said):
            assert name in own[extra]


WITHOUT_TORCH = """
import importlib.abc, sys
class Gone(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, Gone())
import fastsample as fs
plan = fs.solvers.euler(fs.schedules.Flow(), [1.0, 0.5, 0.0], prediction="flow", level=1.0)
print(plan.nfe, fs.Plan.from_bytes(plan.to_bytes()) == plan, len(plan._repr_html_()) > 100)
for name in ("optimize", "Sampler", "Run", "Engine", "trajectories"):
    try:
        getattr(fs, name)
    except ImportError as error:
        print(error)
from fastsample import cli
print(cli.main(["optimize", "--budgets", "2"]))
"""


def test_without_torch_makers_work_and_the_rest_says_so():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=True
    )
    first, *said, code = done.stdout.splitlines()
    assert first == "2 True True" and code == "2"
    told = "fastsample.{}: needs torch, which is not installed; pip install torch"
    names = ("optimize", "Sampler", "Run", "Engine", "trajectories")
    assert said == [told.format(name) for name in names]
    assert done.stderr == "fastsample optimize: torch is not installed; pip install torch\n"
