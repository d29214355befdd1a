"""FsScheduler as vLLM-Omni takes a scheduler that somebody else made, by the contract of its open
proposal (github.com/vllm-project/vllm-omni, RFC 6269 and PR 6277): a small host does with it what
stands there, with the pipeline's own class beside it. Experimental, as the proposal is.
"""

import copy
import importlib
import inspect
import json

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastsample as fs
from tests.oracle.pipelines import network, start

diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.set_verbosity_error()
# diffusers' own
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
EPS = np.finfo(np.float32).eps
FLOW = {"use_flow_sigmas": True, "flow_shift": 5.0, "prediction_type": "flow_prediction"}
SERVED = [  # what it serves: Qwen-Image and FLUX, Wan, two that draw
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "stochastic_sampling": True}),
    ("UniPCMultistepScheduler", FLOW),
    ("DPMSolverMultistepScheduler", FLOW | {"algorithm_type": "sde-dpmsolver++"}),
]


class Host:
    """A pipeline in steps: the scheduler is named by its dotted path and made from the model's own
    folder; every request has a deep copy of it and steps on its own.
    """

    def __init__(self, path, model, **scheduler_kwargs):
        module, name = path.rsplit(".", 1)
        made = getattr(importlib.import_module(module), name)
        self.scheduler = made.from_pretrained(model, subfolder="scheduler", **scheduler_kwargs)
        assert self.scheduler.config.num_train_timesteps == 1000

    def prepare_encode(self, latents, seed=0, **words):
        scheduler = copy.deepcopy(self.scheduler)
        assert words.keys() <= inspect.signature(scheduler.set_timesteps).parameters.keys()
        scheduler.set_timesteps(**words, device=latents.device)
        scheduler.set_begin_index(0)
        request = {"scheduler": scheduler, "latents": latents, "step": 0}
        if "generator" in inspect.signature(scheduler.step).parameters:
            request["given"] = {"generator": torch.Generator().manual_seed(seed)}
        return request

    def denoise_step(self, request):
        """The request one step on; True if that was its last."""
        scheduler, latents = request["scheduler"], request["latents"]
        t = scheduler.timesteps[request["step"]]
        noise_pred, given = network(latents, t), request.get("given", {})
        out = scheduler.step(noise_pred, t, latents, return_dict=False, **given)
        assert isinstance(out, tuple) and out[0].dtype == latents.dtype
        request |= {"latents": out[0], "step": request["step"] + 1}
        return request["step"] == len(scheduler.timesteps)

    def run(self, latents, **words):
        request = self.prepare_encode(latents, **words)
        while not self.denoise_step(request):
            pass
        return request["latents"]


@pytest.fixture
def model(tmp_path):
    """Saves a class's scheduler as a model's folder has it."""

    def saved(name, config):
        getattr(diffusers, name)(**config).save_pretrained(tmp_path / "scheduler")
        return tmp_path

    return saved


@pytest.mark.parametrize(("name", "config"), SERVED)
def test_a_hosts_requests_are_the_classs_own(name, config, model):
    """By a count and by sigmas by name, as warm-up and distilled models ask."""
    folder = model(name, config)
    ours, theirs = (Host(p, folder) for p in ("fastsample.FsScheduler", f"diffusers.{name}"))
    asked = [{"num_inference_steps": 6}]
    if "sigmas" in inspect.signature(theirs.scheduler.set_timesteps).parameters:
        asked += [{"sigmas": np.array([1.0, 0.8, 0.4]), "num_inference_steps": 3}]
    for words in asked:
        ends = [host.run(start(2, 3, 4, 4), seed=4, **words).double() for host in (theirs, ours)]
        assert (ends[0] - ends[1]).abs().max() <= 64 * EPS * ends[0].abs().max()


def test_the_names_stand_in_the_signatures(model):
    """A host reads there whether it may give sigmas and timesteps; on the class, both are."""
    assert {"sigmas", "timesteps"} <= inspect.signature(
        fs.FsScheduler.set_timesteps
    ).parameters.keys()
    for name, config in SERVED:
        ours = Host("fastsample.FsScheduler", model(name, config)).scheduler
        for method in ("set_timesteps", "step"):
            theirs = inspect.signature(getattr(getattr(diffusers, name), method)).parameters
            mine = inspect.signature(getattr(ours, method)).parameters
            assert list(mine) == list(theirs)[1:]
            assert not any(p.kind is p.VAR_POSITIONAL for p in mine.values())


def test_a_generator_by_its_place(model):
    """Where the class's own step has it, whatever stands before it."""
    name, config = SERVED[1]
    ours = Host("fastsample.FsScheduler", model(name, config)).scheduler
    places, x, ends = list(inspect.signature(ours.step).parameters), start(1, 3, 4, 4), []
    for how in ("place", "name"):
        ours.set_timesteps(4)
        g, t = torch.Generator().manual_seed(2), ours.timesteps[0]
        if how == "name":
            ends += ours.step(0.1 * x, t, x, return_dict=False, generator=g)
            continue
        defaults = inspect.signature(ours.step).parameters
        between = [defaults[n].default for n in places[3 : places.index("generator")]]
        ends += ours.step(0.1 * x, t, x, *between, g, return_dict=False)
    assert torch.equal(*ends)


def test_requests_at_different_steps_do_not_meet(model):
    """Three with other step counts and sigmas, one step of each in turn, end as they do alone."""
    host = Host("fastsample.FsScheduler", model(*SERVED[0]))
    asked = [{"num_inference_steps": 5}, {"num_inference_steps": 3}, {"sigmas": [1.0, 0.9, 0.3]}]
    starts = [start(1, 3, 4, 4, seed=k) for k in range(3)]
    alone = [host.run(x, **words) for x, words in zip(starts, asked, strict=True)]
    requests = [host.prepare_encode(x, **words) for x, words in zip(starts, asked, strict=True)]
    running = list(requests)
    while running:
        running = [request for request in running if not host.denoise_step(request)]
    assert all(torch.equal(r["latents"], end) for r, end in zip(requests, alone, strict=True))


class Taken(TorchDispatchMode):
    """Counts the bytes that operators take for what they return."""

    def __init__(self):
        super().__init__()
        self.given, self.made = set(), {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        place = lambda tensor: tensor.untyped_storage().data_ptr()
        self.given |= {place(a) for a in args if isinstance(a, torch.Tensor)} - self.made.keys()
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and place(out) not in self.given:
            self.made[place(out)] = out.untyped_storage()
        return out

    @property
    def bytes(self):
        return sum(storage.nbytes() for storage in self.made.values())


def test_a_deep_copy_is_cheap(model):
    """It shares plans, tables and config; of a run it copies where it stands and what its solver
    remembers of the latents, and nothing that grows with the steps.
    """
    host = Host("fastsample.FsScheduler", model(*SERVED[2]))
    latents = start(1, 16, 32, 32)
    for steps in (8, 60):
        request, taken = host.prepare_encode(latents, num_inference_steps=steps), []
        for _ in range(4):
            with Taken() as took:
                twin = copy.deepcopy(request["scheduler"])
            ours = request["scheduler"]
            assert twin.plan is ours.plan and twin.config is ours.config
            assert twin.step_index == ours.step_index
            taken.append(took.bytes / latents.nbytes)
            t = ours.timesteps[request["step"]]
            out = ours.step(0.1 * latents, t, request["latents"], return_dict=False)
            request |= {"latents": out[0], "step": request["step"] + 1}
        # nothing at the start; then state, base and two data predictions, and the places of a step
        assert taken[0] == 0 and max(taken) < 7, taken


def test_words_beside_the_folder(model):
    """scheduler_kwargs: another class's solver on the model's own schedule; a plan that was found
    for the model.
    """
    folder = model(*SERVED[0])
    words = {"source": "UniPCMultistepScheduler", "compat": None}
    host = Host("fastsample.FsScheduler", folder, **words)
    assert host.scheduler.config["source"] == words["source"]
    host.run(start(1, 3, 4, 4), num_inference_steps=4)

    schedule = fs.schedules.Flow(shift=3.0)
    words = fs.Model(None, schedule, "flow", time=1000.0)
    plan = fs.solvers.dpmpp_2m(words, fs.grids.uniform(schedule, 4))
    made = fs.FsScheduler.from_plan(plan, like=host.scheduler)
    made.save_pretrained(folder / "scheduler")
    said = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert said["_class_name"] == "FsScheduler"
    host, x = Host("fastsample.FsScheduler", folder), start(1, 3, 4, 4)
    run = fs.Run(plan, latent=x, start=1)
    while not run.done:
        run.step(network(run.model_input, run.t[0]))
    end = host.run(x, num_inference_steps=4)
    assert (end - run.x).abs().max() <= 16 * EPS * run.x.abs().max()
