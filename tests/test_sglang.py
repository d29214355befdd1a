"""fastsample's classes in SGLang-Diffusion's hands: a host that does with them what its loader,
timestep preparation and denoising stage (0.5.23) do, beside the diffusers class that they stand in
for.
"""

import copy
import importlib
import inspect
import json
import sys
import types

import numpy as np
import pytest
import torch

import fastsample as fs
from tests.oracle.pipelines import network, start

diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.set_verbosity_error()
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
MATCH, UNIPC = "FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler"
PACKAGE = "fastsample.interop.sglang"
EPS = np.finfo(np.float32).eps
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


class Registry:
    """Models by name; the package is imported for what it registers, its classes when needed."""

    def __init__(self):
        self.known = {}

    def register_model(self, name, path):
        self.known[name] = path

    def resolve(self, name):
        module, made = self.known[name].split(":")
        return getattr(importlib.import_module(module), made)


@pytest.fixture
def registry(monkeypatch):
    """With the package imported as the host's process does it, in another's place."""
    known, at = Registry(), "sglang.multimodal_gen.runtime.models.registry"
    parts = at.split(".")
    for k in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:k]), types.ModuleType(parts[k - 1]))
    sys.modules[at].ModelRegistry = known
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
    importlib.import_module(PACKAGE)
    yield known
    sys.modules.pop(PACKAGE, None)


def load(registry, folder, override=None, flow_shift=None):
    """A checkpoint's scheduler, as the loader makes it."""
    config = json.loads((folder / "scheduler_config.json").read_text())
    own = config.pop("_class_name", None)
    made = registry.resolve(override or own)
    options = inspect.signature(made.__init__).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in options.values()):
        config = {k: v for k, v in config.items() if k in options or k.startswith("_")}
    scheduler = made(**config)
    if flow_shift is not None:
        scheduler.set_shift(flow_shift)
    return scheduler


def run(scheduler, x, seed=0, **words):
    """A request: set_timesteps, the state put back, the loop."""
    assert words.keys() <= inspect.signature(scheduler.set_timesteps).parameters.keys()
    scheduler.set_timesteps(**words, device=x.device)
    timesteps = scheduler.timesteps
    for name in ("_step_index", "_begin_index", "last_sample"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, None)
    for name in ("lower_order_nums", "this_order"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, 0)
    order = getattr(scheduler.config, "solver_order", 0)
    for name in ("model_outputs", "timestep_list"):
        if order and hasattr(scheduler, name):
            setattr(scheduler, name, [None] * order)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    given = {"generator": torch.Generator().manual_seed(seed), "eta": 0.0}
    given = {k: v for k, v in given.items() if k in inspect.signature(scheduler.step).parameters}
    for t in timesteps:
        fed = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        told = {"model_output": network(fed, t), "timestep": t, "sample": x}
        x = scheduler.step(**told, **given, return_dict=False)[0]
    return x.double()


def close(a, b):
    return (a - b).abs().max() <= 64 * EPS * b.abs().max()


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        (MATCH, {"shift": 3.0}, {"num_inference_steps": 6}),
        (MATCH, {"use_dynamic_shifting": True}, {"sigmas": [1.0, 0.7, 0.3], "mu": 0.8}),
        (UNIPC, FLOW | {"flow_shift": 5.0}, {"num_inference_steps": 6}),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, {"num_inference_steps": 6}),
        ("DDIMScheduler", {"steps_offset": 1}, {"num_inference_steps": 6}),
        ("EulerAncestralDiscreteScheduler", {}, {"num_inference_steps": 6}),
    ],
)
def test_a_checkpoints_own_solver(name, config, words, registry, tmp_path):
    """Two requests on one scheduler, as on its worker, and one on a copy; with options in the file
    that are the pipeline's.
    """
    peer, x = getattr(diffusers, name)(**config), start(2, 3, 4, 4)
    peer.save_pretrained(tmp_path)
    file = tmp_path / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_schedule": [1.0, 0.5]}))
    ours = load(registry, tmp_path, f"Fs{name}")
    ours.set_begin_index(0)  # the host does not ask whether it can
    assert ours.num_train_timesteps == 1000 and ours.order == 1
    assert type(ours).__module__ == PACKAGE
    for scheduler in (ours, ours, copy.deepcopy(ours)):
        assert close(run(scheduler, x, 4, **words), run(copy.deepcopy(peer), x, 4, **words))
    ours.save_pretrained(tmp_path / "again")
    again = load(registry, tmp_path / "again")
    assert torch.equal(run(again, x, 4, **words), run(ours, x, 4, **words))


def test_every_class_is_registered(registry):
    from fastsample.interop.diffusers.sources import SOURCES

    assert registry.known.keys() == {"FsScheduler"} | {f"Fs{name}" for name in SOURCES}
    assert all(issubclass(registry.resolve(name), fs.FsScheduler) for name in registry.known)


@pytest.mark.parametrize(
    ("name", "config"),
    [(MATCH, {"shift": 2.0}), (UNIPC, FLOW | {"flow_shift": 2.0})],
)
def test_set_shift_counts_from_the_next_run_on(name, config, registry, tmp_path):
    """The pipeline's flow_shift, as the class itself with that shift; copies keep it."""
    key, x = "shift" if name == MATCH else "flow_shift", start(1, 3, 4, 4)
    getattr(diffusers, name)(**config).save_pretrained(tmp_path)
    ours = load(registry, tmp_path, f"Fs{name}", flow_shift=7.0)
    end, words = run(ours, x, num_inference_steps=5), {"num_inference_steps": 5}
    if name == MATCH:
        peer = getattr(diffusers, name)(**config)
        peer.set_shift(7.0)
    else:
        peer = getattr(diffusers, name)(**{**config, key: 7.0})
    assert close(end, run(peer, x, **words))
    assert torch.equal(run(copy.deepcopy(ours), x, **words), end)


def test_a_solver_on_another_classs_checkpoint(registry, tmp_path):
    """UniPC on a flow checkpoint runs on its flow, shift and labels, as from_config(source=) does;
    with its own defaults it would be a noise prediction on betas.
    """
    peer, x = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), start(2, 3, 4, 4)
    peer.save_pretrained(tmp_path)
    ours = load(registry, tmp_path, "FsUniPCMultistepScheduler")
    same = fs.FsScheduler.from_config(peer, source=UNIPC)
    words = {"num_inference_steps": 6}
    assert torch.equal(run(ours, x, **words), run(same, x, **words))
    shifted = load(registry, tmp_path, "FsUniPCMultistepScheduler", flow_shift=5.0)
    other = fs.FsScheduler.from_config(diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0))
    other = fs.FsScheduler.from_config(other, source=UNIPC)
    assert torch.equal(run(shifted, x, **words), run(other, x, **words))


def test_a_plan_in_a_checkpoints_folder(registry, tmp_path):
    model = fs.Model(None, fs.schedules.Flow(), "flow")
    plan = fs.solvers.dpmpp_2m(model, fs.grids.uniform(model.schedule, 4))
    ours = fs.FsScheduler.from_plan(plan)
    ours.save_pretrained(tmp_path)
    x, words = start(2, 3, 4, 4), {"num_inference_steps": 4}
    for override in (None, "FsScheduler", f"Fs{MATCH}"):
        assert torch.equal(
            run(load(registry, tmp_path, override), x, **words), run(ours, x, **words)
        )
    with pytest.raises(ValueError, match=r"set_shift: 3\.0 for a plan"):
        load(registry, tmp_path, flow_shift=3.0)


@pytest.mark.parametrize(
    ("made", "override", "flow_shift", "sentence"),
    [
        (MATCH, "FsScheduler", None, "FsScheduler: scheduler_config.json was not written by an Fs"),
        ("DDIMScheduler", "FsDDIMScheduler", 3.0, r"set_shift: 3\.0 for DDIMScheduler"),
        (MATCH, f"Fs{MATCH}", -1.0, r"set_shift: -1\.0; a number above 0 is accepted"),
        (
            "DDIMScheduler",
            f"Fs{MATCH}",
            None,
            r"beta_end = 0\.02 of scheduler_config.json is no option of Flow.*DDIM.* is accepted",
        ),
        ("DDIMScheduler", "FsLCMScheduler", None, None),
    ],
)
def test_what_a_config_does_not_say(made, override, flow_shift, sentence, registry, tmp_path):
    getattr(diffusers, made)().save_pretrained(tmp_path)
    if sentence is None:
        assert load(registry, tmp_path, override).config.source == "LCMScheduler"
        return
    with pytest.raises((TypeError, ValueError), match=sentence):
        load(registry, tmp_path, override, flow_shift)


def test_options_of_two_classes(registry, tmp_path):
    made = registry.resolve(f"Fs{UNIPC}")
    with pytest.raises(ValueError, match=r"no option of UniPC.*was written for \(none is known\)"):
        made(skip_prk_steps=True, base_shift=0.5)
