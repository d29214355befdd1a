"""An FsScheduler in files, pickles and copies: a pipeline's folder, strict JSON, a __dict__ that
somebody copies and puts back.
"""

import copy
import inspect
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fastsample
from fastsample import solvers
from fastsample.grids import trailing
from fastsample.interop.diffusers.sources import COSINE
from fastsample.schedules import DiscreteVP
from tests.oracle.pipelines import loop, start

diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()
from tests.beside import COMMON  # noqa: E402 (imports diffusers)

# diffusers' own
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
ROOT = Path(__file__).resolve().parents[1]
FsScheduler = fastsample.FsScheduler
EPS = np.finfo(np.float32).eps
NEEDED = {"PNDMScheduler": {"skip_prk_steps": True}}  # of the classes' own options
PEERS = {name: getattr(diffusers, name)(**NEEDED.get(name, {})) for name in COMMON}
FRESH = """
import sys
import fastsample
assert "diffusers" not in sys.modules and "torch" not in sys.modules
from diffusers import DiffusionPipeline
import torch
from tests.oracle.pipelines import loop, start
for folder in sys.argv[1:]:
    made = DiffusionPipeline.from_pretrained(folder).scheduler
    assert type(made) is fastsample.FsScheduler, type(made)
    torch.save(loop(made, start(1, 3, 4, 4), 3), folder + "/end.pt")
"""


def no_constant(word):
    raise AssertionError(f"{word} is not JSON")


def test_a_saved_pipeline_loads_in_a_fresh_process(tmp_path):
    """After `import fastsample` alone; one that names the module that earlier versions named too,
    once FsScheduler has been used.
    """
    small = {"sample_size": 8, "block_out_channels": (8,), "norm_num_groups": 4}
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    unet = diffusers.UNet2DModel(layers_per_block=1, **small, **blocks)
    schedule = DiscreteVP.linear()
    plan = solvers.unipc(schedule, trailing(schedule, 3), prediction="eps")
    made = [FsScheduler.from_config(PEERS["UniPCMultistepScheduler"]), FsScheduler.from_plan(plan)]
    folders = [str(tmp_path / str(number)) for number in range(3)]
    for folder, scheduler in zip(folders, [*made, made[0]], strict=True):
        diffusers.DDPMPipeline(unet, scheduler).save_pretrained(folder)
    index = tmp_path / "2" / "model_index.json"
    said = json.loads(index.read_text())
    assert said["scheduler"] == ["fastsample", "FsScheduler"]
    said["scheduler"][0] = "fastsample.interop.diffusers"
    index.write_text(json.dumps(said))
    done = subprocess.run([sys.executable, "-c", FRESH, *folders], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    ends = [torch.load(folder + "/end.pt") for folder in folders]
    want = [loop(scheduler, start(1, 3, 4, 4), 3) for scheduler in made]
    assert all(map(torch.equal, ends, [*want, want[0]])) and not torch.equal(*want)


@pytest.mark.parametrize("source", COMMON)
@pytest.mark.parametrize("compat", ["diffusers", None])
def test_a_file_is_strict_json_and_says_all(source, compat, tmp_path):
    """What is read back says what was saved and nothing of defaults, as the class's own; the class
    reads it as it reads its own file.
    """
    peer = PEERS[source]
    ours = FsScheduler.from_config(peer, compat=compat, num_train_timesteps=999)
    assert json.loads(ours.to_json_string(), parse_constant=no_constant)["compat"] == compat
    ours.save_pretrained(tmp_path)
    again = FsScheduler.from_pretrained(tmp_path)
    said = {k: v for k, v in ours.config.items() if k != "_use_default_values"}
    assert "_use_default_values" in ours.config and dict(again.config) == said
    assert said["_class_name"] == "FsScheduler"
    ends = []
    for scheduler in (ours, again):
        torch.manual_seed(0)
        ends.append(loop(scheduler, start(1, 3, 4, 4), 3))
    assert torch.equal(*ends)

    theirs = type(peer).from_config(type(peer).load_config(tmp_path)).config
    names = inspect.signature(type(peer).__init__).parameters.keys() - {"self", "kwargs"}
    want = {**peer.config, "num_train_timesteps": 999}
    assert all(theirs[name] == want[name] for name in names)


def test_what_no_file_can_say_is_refused(tmp_path):
    peer = diffusers.DDIMScheduler(thresholding=True, sample_max_value=float("inf"))
    ours = FsScheduler.from_config(peer)
    with pytest.raises(
        ValueError,
        match="FsScheduler: sample_max_value = inf has no place in a file; a finite number, or the "
        "option's default, is accepted",
    ):
        ours.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    FsScheduler.from_config(ours, sample_max_value=1e30).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="inf has no place in a file"):
        ours.save_pretrained(tmp_path)  # and what stands there stays
    assert FsScheduler.from_pretrained(tmp_path).config["sample_max_value"] == 1e30


def views(scheduler, steps=5):
    """Two pictures by turns with one scheduler, as panoramas are made: its __dict__ is copied once
    for both, put back before a picture's step and copied anew behind it.
    """
    scheduler.set_timesteps(steps)
    x = [start(1, 3, 4, 4), -start(1, 3, 4, 4).flip(-1)]
    states = [copy.deepcopy(scheduler.__dict__)] * 2
    for t in scheduler.timesteps:
        for k in range(2):
            scheduler.__dict__.update(states[k])
            getattr(scheduler, "scale_model_input", lambda x, t: None)(x[k], t)  # as pipelines do
            model_output = 0.3 * x[k] + 0.2 * (k + 1) * torch.tanh(x[k])
            x[k] = scheduler.step(model_output, t, x[k], return_dict=False)[0]
            states[k] = copy.deepcopy(scheduler.__dict__)
    return torch.cat(x)


# torchsde's tree, which two of them themselves keep, stands no copying, and the list of outputs
# that IPNDM adds to is one for both pictures
ALONE = {"DPMSolverSDEScheduler", COSINE, "IPNDMScheduler"}


@pytest.mark.parametrize("source", sorted({*COMMON} - ALONE))
def test_a_dict_that_is_copied_and_put_back(source):
    ends = []
    for scheduler in (PEERS[source], FsScheduler.from_config(PEERS[source])):
        torch.manual_seed(0)
        ends.append(views(scheduler).double())
    want, have = ends
    assert (have - want).abs().max() <= 64 * EPS * want.abs().max()
    assert (want[0] - want[1].flip(-1)).abs().max() > 0.1  # two pictures


def test_a_copied_dict_stands_still():
    """It serves as often as it is put back, for runs, begin indices and new timesteps alike."""
    ours = FsScheduler.from_config(PEERS["UniPCMultistepScheduler"])
    ours.set_timesteps(6)
    x = start(1, 3, 4, 4)
    for t in ours.timesteps[:2]:
        x = ours.step(0.1 * x, t, x).prev_sample
    state, then, ends = copy.deepcopy(ours.__dict__), ours.timesteps, []
    for change in (lambda: None, lambda: ours.set_timesteps(9), lambda: None):
        ours.__dict__.update(state)
        assert ours.step_index == 2
        y = x
        for t in then[2:]:
            y = ours.step(0.1 * y, t, y).prev_sample
        ends.append(y)
        ours.__dict__.update(state)
        change()
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])


@pytest.mark.parametrize("source", COMMON)
def test_a_pickle_of_an_earlier_version_runs(source):
    """It has what was given; what follows from that may be of other names, or missing."""
    ours = FsScheduler.from_config(PEERS[source])
    given = {"_internal_dict", "_given", "_loops", "_auto"}
    old = object.__new__(FsScheduler)
    old.__dict__.update({k: v for k, v in ours.__dict__.items() if k in given}, _gone=1)
    x, ends = start(1, 3, 4, 4), []
    for scheduler in (ours, pickle.loads(pickle.dumps(old)), pickle.loads(pickle.dumps(ours))):
        torch.manual_seed(0)
        ends.append(loop(scheduler, x, 4))
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("source", COMMON)
def test_a_pickle_goes_on_where_it_stood(source, dtype):
    """As the class's own does: at its start, and of a run that is under way, in half precision from
    the state itself. A shallow copy is as deep, for a run in two hands would be stepped by both.
    """
    ours, x = FsScheduler.from_config(PEERS[source]), start(1, 3, 4, 4, dtype=dtype)
    ours.set_timesteps(5)
    ours.set_begin_index(1)
    generator = torch.Generator()

    def walk(scheduler, y, times):
        for t in times:
            y = scheduler.step(
                0.1 * scheduler.scale_model_input(y, t), t, y, generator=generator
            ).prev_sample
        return y

    times, send = ours.timesteps[1:], lambda value: pickle.loads(pickle.dumps(value))
    twin = send(ours)
    assert torch.equal(twin.timesteps, ours.timesteps) and twin.begin_index == 1
    for k in range(len(times)) if dtype == torch.float32 else (2,):
        y = walk(ours, x, times[:k])
        drawn = generator.get_state()
        roads = (lambda s, y: (copy.copy(s), y), lambda *both: send(both))
        roads += (lambda *both: copy.deepcopy(both), lambda *both: both)
        edits = (lambda y: y, lambda y: 0.9 * y)
        held = [[road(copy.copy(ours), y) for road in roads] for _ in edits]
        for edit, others in zip(edits, held, strict=True):
            ends = []
            for scheduler, sample in others:
                generator.set_state(drawn)
                assert scheduler.step_index == ours.step_index
                ends.append(walk(scheduler, edit(sample), times[k:]))
            assert all(torch.equal(end, ends[-1]) for end in ends)
        ours.set_timesteps(5)
        ours.set_begin_index(1)


def test_a_pickle_goes_on_under_inference_mode():
    """In which tensors do not count what is written to them."""
    ours, x = FsScheduler.from_config(PEERS["UniPCMultistepScheduler"]), start(1, 3, 4, 4)
    ours.set_timesteps(5)
    ends = []
    with torch.inference_mode():
        for t in ours.timesteps[:2]:
            x = ours.step(0.1 * x, t, x).prev_sample
        for scheduler, y in (pickle.loads(pickle.dumps((ours, x))), (ours, x)):
            for t in scheduler.timesteps[2:]:
                y = scheduler.step(0.1 * y, t, 0.9 * y).prev_sample
            ends.append(y)
    assert torch.equal(*ends)


def test_a_run_with_gradients_stays_in_its_process():
    ours = FsScheduler.from_config(PEERS["DDIMScheduler"])
    ours.set_timesteps(5)
    x = start(1, 3, 4, 4).requires_grad_()
    ours.step(0.1 * x, ours.timesteps[0], x)
    with pytest.warns(match="a run with gradients is under way and stays here") as told:
        begun = pickle.loads(pickle.dumps(ours))
    assert told[0].filename == __file__
    assert begun.step_index is None and torch.equal(begun.timesteps, ours.timesteps)


@pytest.mark.parametrize("name", ["DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep"])
def test_of_equal_timesteps_add_noise_takes_the_second_as_the_class(name):
    words = {"use_karras_sigmas": True, "beta_schedule": "squaredcos_cap_v2"}
    peer = getattr(diffusers, f"{name}Scheduler")(**words)
    ours = FsScheduler.from_config(peer)
    peer.set_timesteps(12)
    ours.set_timesteps(12)
    assert peer.timesteps[0] == peer.timesteps[2]
    x, n = torch.ones(1, 1), torch.zeros(1, 1)
    for k in (0, 1, 2, 7):
        t = peer.timesteps[[k]]
        torch.testing.assert_close(ours.add_noise(x, n, t), peer.add_noise(x, n, t))


@pytest.mark.parametrize("name", ["scheduler", "from_plan"])
def test_golden_pickles_run(name):
    """As their configs, made today."""
    found = pickle.loads((ROOT / "tests/golden/pickles" / f"{name}.pickle").read_bytes())
    again = FsScheduler.from_config(found.config)
    x = start(1, 3, 4, 4)
    assert torch.equal(loop(found, x, 3), loop(again, x, 3))


def test_what_nobody_set_is_the_other_classs_own():
    """A file of a PNDM scheduler without a word on the grid, as Stable Diffusion 1.5's, loaded as
    another class or moved to it: on its own grid.
    """
    file = {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "steps_offset": 1}
    file |= {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    pndm = diffusers.PNDMScheduler.from_config(file)
    want = diffusers.EulerDiscreteScheduler.from_config(pndm.config).config
    assert (want["timestep_spacing"], want["steps_offset"]) == ("linspace", 1)
    ours = FsScheduler.from_config(pndm)
    for config in (file, pndm, pndm.config, ours, ours.config):
        made = FsScheduler.from_config(config, source="EulerDiscreteScheduler").config
        assert (made["timestep_spacing"], made["steps_offset"]) == ("linspace", 1)
    assert diffusers.EulerDiscreteScheduler.from_config(ours.config).config == {
        **want,
        **{k: ours.config[k] for k in ("source", "compat", "plan")},
    }
