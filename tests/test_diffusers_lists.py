"""Lists of timesteps and of levels that rise, or stay: refused with the list that is accepted, or
run as diffusers' own classes run them.
"""

import ast
import re

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample.interop.diffusers.calls import takes
from fastsample.interop.diffusers.config import DISTILLED
from fastsample.interop.diffusers.consistency import NAME as CM
from fastsample.interop.diffusers.inverse import INVERSE
from fastsample.interop.diffusers.sources import COSINE
from fastsample.interop.diffusers.training import EDMS

diffusers = pytest.importorskip("diffusers")
from tests.beside import COMMON, X, both, close  # noqa: E402 (imports diffusers)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
MATCH, LTX = "FlowMatchEulerDiscreteScheduler", "LTXEulerAncestralRFScheduler"
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
CASES = [(name, {"skip_prk_steps": True} if name == "PNDMScheduler" else {}) for name in COMMON]
CASES += [(name, FLOW) for name in ("UniPCMultistepScheduler", "DPMSolverMultistepScheduler")]
RISING = [
    {"sigmas": [0.2, 0.5, 1.0]},
    {"sigmas": np.linspace(0.0, 1.0, 9)},
    {"timesteps": [100, 500, 900]},
    {"timesteps": torch.tensor([1, 999])},
]


@pytest.mark.parametrize("given", RISING, ids=str)
@pytest.mark.parametrize(("name", "config"), CASES)
def test_a_rising_list_is_refused_and_the_one_that_is_shown_is_taken(name, config, given):
    """Euler, FlowMatchEuler and the multistep classes of diffusers take it, and go up: whatever
    ends there is no image.
    """
    peer, ours = both(name, config, compat="diffusers")
    exact = fs.FsScheduler.from_config(peer, compat=None)
    given = dict(given)
    ((word, values),) = given.items()
    if name in (*EDMS, COSINE) and word == "timesteps":  # ln(sigma)/4, and angles
        values = given[word] = [float(v) / 1000.0 for v in values]
    if name in (LTX, "IPNDMScheduler") and word == "timesteps":  # sigmas, and angles
        values = given[word] = [float(v) / 1000.0 for v in values]
    if name == CM and word == "timesteps":  # of 40
        values = given[word] = [int(v) // 100 for v in values]
    if name in INVERSE:
        with pytest.raises(ValueError, match=f"{word} of {name}, which goes up a grid of its own"):
            exact.set_timesteps(**given)
        return
    if name in DISTILLED and word == "sigmas":
        with pytest.raises(ValueError, match=f"sigmas of {name}, which stands on timesteps"):
            exact.set_timesteps(**given)
        return
    right = [float(v) for v in values][::-1]
    for scheduler in (exact, ours) if word in takes(type(peer)) else (exact,):
        said = f"^FsScheduler.set_timesteps: {word}: the numbers rise from .* to .*; the same list"
        with pytest.raises(ValueError, match=said) as caught:
            scheduler.set_timesteps(**given)
        shown = re.search(r"\[.*\]$", str(caught.value)).group().replace(", ...", "")
        shown = ast.literal_eval(shown)
        assert len(shown) >= 2 and shown == right[: len(shown)]
    exact.set_timesteps(**{word: right})
    assert (exact.sigmas.diff() <= 0).all() and exact.sigmas[-1] < exact.sigmas[0]


@pytest.mark.parametrize("given", [{"sigmas": [0.2, 1.0, 0.5]}, {"timesteps": [100, 900, 500]}])
@pytest.mark.parametrize("compat", ["diffusers", None])
def test_one_that_goes_up_and_down_is_no_repeated_level(given, compat):
    for name in ("EulerDiscreteScheduler", MATCH):
        _, ours = both(name, {}, compat=compat)
        with pytest.raises(ValueError, match="numbers( that never rise)? from .* down to 0 are"):
            ours.set_timesteps(**given)


@pytest.mark.parametrize("times", [[999, 500, 500, 100], [700, 300, 300], [900, 900, 900]])
@pytest.mark.parametrize(
    "name", ["EulerDiscrete", "DPMSolverMultistep", "DPMSolverSinglestep", "FlowMatchEulerDiscrete"]
)
def test_repeated_timesteps_are_steps_of_length_0(name, times):
    """As in the classes, whose step between equal levels changes nothing; where it divides by 0 or
    runs off its list, one that does.
    """
    ends = []
    for scheduler in both(f"{name}Scheduler", {}, compat="diffusers")[::-1]:
        scheduler.set_timesteps(timesteps=times)
        assert scheduler.timesteps.tolist() == times
        x, broken = X.float(), times[0] == times[1]
        for t in scheduler.timesteps[: 0 if broken and len(ends) == 3 else None]:
            x = scheduler.step(0.1 * x, t, x).prev_sample
            ends.append(x)
    found, theirs = ends[: len(times)], ends[len(times) :]
    assert all(torch.isfinite(x).all() for x in found)
    for a, b in zip(found, theirs, strict=False):
        assert close(a, b) or (name == "DPMSolverMultistep" and b.isnan().all())
