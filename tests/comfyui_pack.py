"""The node pack of integrations/comfyui in the host of comfyui_host.py, and models of every kind to
sample with it.
"""

import asyncio
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from tests import comfyui_host as host

FOLDER = Path(__file__).parents[1] / "integrations" / "comfyui"
KINDS = {"eps": host.EPS, "v": host.V, "edm": host.EDM, "flow": host.CONST}


def load(name="fastsample_pack"):
    """The pack, imported from its folder under a name of the host's."""
    place, words = FOLDER / "__init__.py", {"submodule_search_locations": [str(FOLDER)]}
    spec = importlib.util.spec_from_file_location(name, place, **words)
    pack = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
    return pack


@pytest.fixture(name="pack")
def loaded(monkeypatch, tmp_path):
    """The pack, with `run(node, **inputs)`, `node(name)` and an empty folder of plans."""
    for name, module in host.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    pack = load()
    host.Host.reset()
    monkeypatch.setattr(pack.store, "FOLDER", tmp_path)
    nodes = asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
    named = {node.define_schema().node_id: node for node in nodes}
    pack.folder, pack.node = tmp_path, lambda id: named[f"Fastsample{id}"]
    pack.run = lambda id, /, **given: host.run(pack.node(id), **given)
    yield pack
    for name in [name for name in sys.modules if name.split(".")[0] == "fastsample_pack"]:
        del sys.modules[name]


def network(x, t, gain=None):
    """Any smooth function of what a network is asked with."""
    wide = t.view(-1, *[1] * (x.dim() - 1))
    return 0.6 * x + 0.4 * torch.sin(2 * x + wide) * (1.0 if gain is None else gain)


def noise(seed=0, shape=(2, 3, 4, 4), dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def levels(kind, n=6):
    """SIGMAS as a scheduler of the host gives them: float32, the model's largest first, then 0."""
    if kind == "flow":
        times = torch.linspace(1, 0, n + 1)
        return 3 * times / (1 + 2 * times)
    sampling = KINDS[kind]()
    ends = [float(v) ** (1 / 7) for v in (sampling.sigma_max, sampling.sigma_min)]
    return torch.cat([torch.linspace(*ends, n) ** 7, torch.zeros(1)])


def sampled(sampler, sigmas, kind="eps", z=None, latent=None, mask=None, options=None, **words):
    z = noise() if z is None else z
    latent = torch.zeros_like(z) if latent is None else latent
    guider = host.Guider(network, KINDS[kind](), cfg=words.pop("cfg", 1.0), **(options or {}))
    words = {"disable_pbar": True, "seed": 3, **words}
    with torch.inference_mode():
        return guider.sample(z, latent, sampler, sigmas, mask, **words)
