"""Arguments of set_timesteps in pairs: what the class refuses is refused in every mode, what it
takes is taken.
"""

import inspect
from itertools import combinations

import numpy as np
import pytest
import torch

import fastsample as fs

diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.set_verbosity_error()
from tests.beside import CONFIGS  # noqa: E402 (imports diffusers)

pytestmark = pytest.mark.filterwarnings("ignore")
MODES = ("auto", "diffusers", None)
CONVERTED = [
    (name, {key: True})
    for name, _ in CONFIGS[:11]
    for key in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
    if key in inspect.signature(getattr(diffusers, name).__init__).parameters
]
# of a class that takes no list, or this one of another config only, any list is ours
EXTENDED = "supported when `use_flow_sigmas=True`"


def values(name, config):
    """Each argument with values that stand well alone, and that go with each other or do not."""
    flow = name.startswith(("Flow", "LTX")) or config.get("use_flow_sigmas")
    levels = [1.0, 0.8, 0.5, 0.2] if flow else [14.0, 5.0, 1.0, 0.3, 0.0]
    first = 999.0 if name.startswith("Flow") else 999
    times = [first, *(first - 400 * k / 2 for k in range(1, 4))]
    return {
        "num_inference_steps": (4, 5),
        "timesteps": (levels if name.startswith("LTX") else times,),
        "sigmas": (np.array(levels), np.array(levels[:-1])),
        "mu": (0.9,),
        "original_inference_steps": (50,),
        "strength": (1.0,),
    }


def answered(scheduler, given):
    try:
        scheduler.set_timesteps(**given)
    except (ValueError, TypeError, AssertionError, AttributeError) as error:
        return error
    return None


def asked(name, config):
    own = inspect.signature(getattr(diffusers, name).set_timesteps).parameters
    listed = {k: v for k, v in values(name, config).items() if k in own}
    for pair in combinations(listed, 2):
        for a in listed[pair[0]]:
            for b in listed[pair[1]]:
                yield dict(zip(pair, (a, b), strict=True))


@pytest.mark.parametrize(("name", "config"), CONFIGS + CONVERTED)
def test_what_the_class_refuses_together_is_refused(name, config):
    kind = getattr(diffusers, name)
    for given in asked(name, config):
        peer = kind(**config)
        theirs = answered(peer, given)
        for compat in MODES:
            ours = fs.FsScheduler.from_config(kind(**config), compat=compat)
            found = answered(ours, given)
            if isinstance(theirs, (ValueError, AssertionError)) and EXTENDED not in str(theirs):
                assert isinstance(found, ValueError), (given, compat)
                assert "accepted" in str(found)
            elif theirs is None and compat:
                assert found is None, (given, compat)
                assert torch.equal(ours.timesteps, peer.timesteps)


@pytest.mark.parametrize("compat", MODES)
@pytest.mark.parametrize(
    ("name", "given", "what"),
    [
        (
            "DDIMScheduler",
            {"num_inference_steps": 2, "timesteps": [9, 5]},
            "steps beside timesteps",
        ),
        ("DDIMScheduler", {"timesteps": [9], "sigmas": [1.0, 0.0]}, "timesteps beside sigmas"),
        ("PNDMScheduler", {"num_inference_steps": 4, "mu": 0.5}, "shifts by none"),
        ("DDPMScheduler", {"num_inference_steps": 4, "original_inference_steps": 50}, "distilled"),
    ],
)
def test_arguments_that_the_class_lacks_are_held_to_the_same(name, given, what, compat):
    scheduler = fs.FsScheduler.from_config(getattr(diffusers, name)(), compat=compat)
    with pytest.raises(ValueError, match=rf"set_timesteps: .*{what}.*; .*accepted"):
        scheduler.set_timesteps(**given)


def test_a_flow_that_moved_takes_the_mu_of_its_pipeline():
    peer = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    for source in ("EulerDiscreteScheduler", "UniPCMultistepScheduler"):
        scheduler = fs.FsScheduler.from_config(peer, source=source)
        scheduler.set_timesteps(4, mu=0.9)
        assert len(scheduler.timesteps) == 4
