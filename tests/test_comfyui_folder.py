"""What lies in integrations/comfyui beside the nodes: the registry's words, the plans that come
with it, the example workflows.
"""

import json
import re

import pytest
import torch

import fastsample as fs
from tests.comfyui_pack import FOLDER, loaded, noise, sampled  # noqa: F401

SHIPPED = sorted(path.stem for path in (FOLDER / "plans").glob("*.fsplan"))
# what stands in the workflows of the host's own nodes: outputs, and inputs that are connections
HOSTS = {
    "CheckpointLoaderSimple": ("MODEL CLIP VAE", ""),
    "CLIPTextEncode": ("CONDITIONING", "clip"),
    "EmptyLatentImage": ("LATENT", ""),
    "CFGGuider": ("GUIDER", "model positive negative"),
    "RandomNoise": ("NOISE", ""),
    "KSamplerSelect": ("SAMPLER", ""),
    "BasicScheduler": ("SIGMAS", "model"),
    "SamplerCustomAdvanced": ("LATENT LATENT", "noise guider sampler sigmas latent_image"),
    "VAEDecode": ("IMAGE", "samples vae"),
    "SaveImage": ("", "images"),
    "PreviewAny": ("", "source"),
}


def test_the_registrys_words():
    text = (FOLDER / "pyproject.toml").read_text()
    word = lambda name: re.search(rf'^{name} = "(.*)"$', text, re.MULTILINE)[1]
    name = word("name")
    assert re.fullmatch(r"[a-z][a-z0-9-]{1,98}", name) and "comfyui" not in name
    assert word("version") == fs.__version__ and re.fullmatch(r"\d+\.\d+\.\d+", word("version"))
    assert 'license = { text = "Apache-2.0" }' in text
    needed = (FOLDER / "requirements.txt").read_text().strip()
    assert f'dependencies = ["{needed}"]' in text
    for path in FOLDER.glob("*.py"):
        assert "NODE_CLASS_MAPPINGS" not in path.read_text(), "the host would ignore V3 nodes"


@pytest.mark.parametrize("name", SHIPPED)
def test_plans_that_come_with_it_run(pack, monkeypatch, name):
    monkeypatch.setattr(pack.store, "FOLDER", FOLDER / "plans")
    assert pack.store.names() == SHIPPED == ["eps-6", "eps-8", "flow-6", "flow-8"]
    sampler, sigmas, _ = pack.run("Plan", plan=name)
    kind, n = name.split("-")
    plan = fs.Plan.load(FOLDER / "plans" / f"{name}.fsplan")
    assert len(sigmas) == int(n) + 1 and plan.note["found"]["method"] == "model_free"
    again = fs.optimize.model_free(
        fs.interop.k_model(noise, fs.schedules.from_json(plan.note["schedule"])), int(n)
    )
    found = torch.tensor(fs.interop.k_sigmas(again), dtype=torch.float32)
    torch.testing.assert_close(sigmas, found, rtol=1e-3, atol=0)
    (solver,) = pack.run("Solver", solver="dpmpp_2m")
    if kind == "flow":  # both begin with all of the noise that the host scales
        ends = [sampled(each, sigmas, kind) for each in (sampler, solver)]
        torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-5)
    assert sampled(sampler, sigmas, kind).isfinite().all()


@pytest.mark.parametrize("name", ["plan", "calibrate"])
def test_workflows_connect_what_is_there(pack, name):
    workflow = json.loads((FOLDER / "example_workflows" / f"{name}.json").read_text())
    nodes, links = {node["id"]: node for node in workflow["nodes"]}, workflow["links"]
    for node in nodes.values():
        outputs = [out["type"] for out in node["outputs"]]
        connected = [one["name"] for one in node["inputs"]]
        if node["type"] in HOSTS:
            given, asked = (words.split() for words in HOSTS[node["type"]])
            assert outputs == given and connected == asked
            continue
        schema = pack.node(node["type"].removeprefix("Fastsample")).define_schema()
        assert outputs == [out.type for out in schema.outputs]
        widgets = [
            one for one in schema.inputs if "default" in one.words or one.options is not None
        ]
        assert connected == [one.id for one in schema.inputs if one not in widgets]
        for one, value in zip(widgets, node["widgets_values"], strict=True):
            default = one.words.get("default", "")
            assert isinstance(value, type(default)), f"{one.id} = {value!r}"
            assert one.id == "plan" and value in SHIPPED or not one.options or value in one.options
    for id, of, out, to, into, kind in links:
        assert (
            nodes[of]["outputs"][out]["type"] == kind and id in nodes[of]["outputs"][out]["links"]
        )
        assert nodes[to]["inputs"][into]["link"] == id
        assert nodes[to]["inputs"][into]["type"] in (kind, "*")
    linked = [one["link"] for node in nodes.values() for one in node["inputs"]]
    assert sorted(linked) == [link[0] for link in links], "nothing is left unconnected"
