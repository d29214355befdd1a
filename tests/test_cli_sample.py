"""fastsample sample on a device and in a dtype."""

from dataclasses import replace

import numpy as np
import torch

import fastsample as fs
from fastsample import cli


def test_sample_asks_the_model_in_the_dtype_that_its_plan_was_found_in(tmp_path, monkeypatch):
    """As optimize does: 16 bits for the model's input and answer, and float32 for the state."""
    monkeypatch.chdir(tmp_path)
    words = ["--samples", "2", "--seed", "3", "--out", "a.npy"]
    it = cli.embedded()
    plan = fs.solvers.dpmpp_2m(it.model, fs.grids.karras(it.model.schedule, 3))
    plan.save("p.fsplan")
    ends = {}
    for dtype in ("float32", "bfloat16", "float64"):
        assert cli.main(["sample", "p.fsplan", *words, "--dtype", dtype, "--device", "cpu"]) == 0
        ends[dtype] = np.load("a.npy")
    z = it.noise(2, 3)
    want = fs.Sampler(plan, it.model)(noise=z, **it.words(2))
    np.testing.assert_array_equal(ends["float32"], want.numpy())
    off = np.abs(ends["float64"] - ends["float32"]).max()
    assert 0 < off < 1e-4, "its weights, too"
    off = np.abs(ends["bfloat16"] - ends["float32"]).max()
    assert 1e-4 < off < 0.5 and ends["bfloat16"].dtype == np.float32
    cast = torch.autocast("cpu", torch.bfloat16)(it.model.fn.forward)
    own = replace(it.model, fn=cast, model_id=it.model.identity)
    want = fs.Sampler(plan, own, model_dtype=torch.bfloat16)(noise=z, **it.words(2))
    np.testing.assert_array_equal(ends["bfloat16"], want.numpy())
