"""DPM-Solver++ and UniPC on flow sigmas: FsScheduler's grids and steps against the classes' own."""

import numpy as np
import pytest
import torch

import fastsample
from tests.oracle.pipelines import network, start

diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.set_verbosity_error()
# diffusers' own
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
FsScheduler = fastsample.FsScheduler
EPS = float(np.finfo(np.float32).eps)
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
MULTISTEP = [f"DPMSolver{kind}Scheduler" for kind in ("Multistep", "Singlestep")]
MULTISTEP.append("UniPCMultistepScheduler")
DYNAMIC = {"use_dynamic_shifting": True, "time_shift_type": "exponential"}


@pytest.mark.parametrize("source", MULTISTEP)
@pytest.mark.parametrize("end", ["zero", "sigma_min"])
@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, {"num_inference_steps": 1}),
        ({"solver_order": 3}, {"num_inference_steps": 9}),
        (DYNAMIC, {"num_inference_steps": 6, "mu": 0.8}),
        ({"shift_terminal": 0.1}, {"num_inference_steps": 6}),
        ({"shift_terminal": 0.1}, {"sigmas": np.array([1.0, 0.4, 0.0])}),
        ({"use_karras_sigmas": True, "shift_terminal": 0.1}, {"num_inference_steps": 5}),
        (DYNAMIC | {"time_shift_type": "linear"}, {"num_inference_steps": 5, "mu": 1.5}),
    ],
)
def test_multistep_classes_on_flow_sigmas_are_the_peers(source, end, config, words):
    """compat: grids bit for bit, samples to 16 roundings a step; only UniPC takes sigmas, a linear
    shift, a terminal level and Karras' levels there. Exact: the levels of the rule, for
    "sigma_min" n + 1 of them and no step of length 0.
    """
    others = {"shift_terminal", "use_karras_sigmas", "time_shift_type"} & config.keys()
    if not source.startswith("UniPC") and (others - {"time_shift_type"} or "linear" in str(config)):
        return
    peer = getattr(diffusers, source)(**FLOW | config, final_sigmas_type=end)
    compat, exact = (FsScheduler.from_config(peer, compat=c) for c in ("diffusers", None))
    ends = []
    for scheduler in (peer, compat):
        scheduler.set_timesteps(**words)
        x = start(2, 3, 4, 4)
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t), t, x, return_dict=False)[0]
        ends.append(x)
    assert torch.equal(peer.sigmas, compat.sigmas) and torch.equal(peer.timesteps, compat.timesteps)
    steps = len(peer.timesteps)
    assert (ends[0] - ends[1]).abs().max() <= 16 * steps * EPS * ends[0].abs().max()
    if end == "sigma_min" and "sigmas" in words:
        with pytest.raises(ValueError, match="'sigma_min' repeats its last level; a number of st"):
            exact.set_timesteps(**words)
        return
    exact.set_timesteps(**words)
    # UniPC begins 1e-6 below 1, and a product of 1,000 alphas in float32 stands behind Karras'
    off = 2e-6 + ("use_karras_sigmas" in config) * 1000 * EPS
    if end == "zero":
        assert torch.allclose(exact.sigmas, peer.sigmas, rtol=0, atol=off)
        return
    assert len(exact.sigmas) == steps + 1 and bool((exact.sigmas.diff() < 0).all())
    fine = getattr(diffusers, source)(**FLOW | config)
    fine.set_timesteps(**words | {"num_inference_steps": steps + 1})
    assert torch.allclose(exact.sigmas, fine.sigmas[:-1], rtol=0, atol=off)
