"""Every solver of the registry on the embedded model, as docs/solvers.png shows them: at 10 and 20
evaluations the run is the NumPy interpreter's.
"""

import interpreter
import numpy as np
import pytest
import torch
from test_solvers_page import TOOL

from fastsample import cli, metrics
from fastsample.kernels import normal
from fastsample.solvers import SOLVERS

COUNT, SEED = 2, 40


@pytest.mark.slow
@pytest.mark.parametrize("budget", TOOL["STEPS"])
@pytest.mark.parametrize("name", SOLVERS)
def test_the_embedded_model_by_every_solver_is_the_interpreters_run(name, budget):
    """To the bit in float32, both asking one network with one batch; and what comes out is an image
    of the data's range.
    """
    it = cli.embedded()
    z, words = it.noise(COUNT, cli.UNSEEN), it.words(COUNT)
    plan = TOOL["most"](name, it.model, budget, TOOL["of_hand"](it.model, "Karras"))
    assert budget // 2 < plan.nfe <= budget
    end = metrics.run(plan, it.model, z, seed=SEED, **words)

    def noise(number):
        seeds, size = SEED + torch.arange(COUNT), z[0].numel()
        own = normal(seeds, torch.full((COUNT,), number), size) if number else z
        return own.reshape(-1).numpy()

    def model(x, t, row, call):
        times = torch.full((COUNT,), float(t[0]))
        with torch.no_grad():
            said = it.model.fn(torch.from_numpy(x).view(z.shape), times, **words["cond"])
        return [said.reshape(-1).numpy()]

    theirs = interpreter.run(plan, noise(0), model, noise, dtype=np.float32)
    assert torch.equal(end, torch.from_numpy(theirs).view(z.shape))
    assert torch.isfinite(end).all() and end.abs().median() < 1.5
