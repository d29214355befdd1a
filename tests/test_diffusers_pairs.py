"""Pairs of a scheduler of diffusers and a class to move it to. What diffusers' own classes say to
one another is moved, and whatever is accepted stands on the noise schedule that it came from.
"""

import inspect
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import fastsample
from fastsample.interop.diffusers.sources import CLOSEST, SOURCES

diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.set_verbosity_error()
pytestmark = pytest.mark.filterwarnings("ignore")
FsScheduler = fastsample.FsScheduler
STEPS, MU = 6, 0.7
CONVERSIONS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
OPTIONS = {
    "num_train_timesteps": [1000, 500],
    "beta_start": [0.0001, 0.00085],
    "beta_end": [0.012, 0.02],
    "beta_schedule": ["linear", "scaled_linear", "squaredcos_cap_v2"],
    "prediction_type": ["epsilon", "sample", "v_prediction"],
    "timestep_spacing": ["linspace", "leading", "trailing"],
    "steps_offset": [0, 1],
    "rescale_betas_zero_snr": [False, True],
    "clip_sample": [False, True],
    "clip_sample_range": [1.0, 2.0],
    "thresholding": [False, True],
    "sample_max_value": [1.0, 1.5],
    "set_alpha_to_one": [False, True],
    "final_sigmas_type": ["zero", "sigma_min"],
    "snr_shift_scale": [1.0, 3.0],
    "timestep_type": ["discrete", "continuous"],
    "lambda_min_clipped": [-5.1],
    "solver_order": [1, 2],
    "algorithm_type": ["dpmsolver++", "sde-dpmsolver++"],
    "use_flow_sigmas": [True],
    "flow_shift": [1.0, 3.0],
    "shift": [0.5, 1.0, 3.0],
    "use_dynamic_shifting": [True],
    "shift_terminal": [0.1],
    "invert_sigmas": [True],
    "skip_prk_steps": [True],
    **dict.fromkeys(CONVERSIONS, [True]),
}
SLOW = ("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler")  # .2 s to make one


# their levels are nobody else's: every pair is refused
ALONE = ("IPNDM", "CosineDPMSolverMultistep", "SCM", "DDPMWuerstchen")
ALONE = tuple(f"{name}Scheduler" for name in ALONE)

# what has a sentence of its own once the grid is asked for: no x0 can be read off pure noise
NO_SIGNAL = "alpha = 0"


@st.composite
def pairs(draw, slow=True):
    """(class, some of its options with a value each, class to move to)"""
    left = {*ALONE, *(() if slow else SLOW)}
    names = sorted({*SOURCES, *CLOSEST} - left)
    name = draw(st.sampled_from(names))
    known = inspect.signature(getattr(diffusers, name).__init__).parameters.keys() & OPTIONS.keys()
    some = st.lists(st.sampled_from(sorted(known)), max_size=6, unique=True)
    keys = draw(some) if known else []
    config = {key: draw(st.sampled_from(OPTIONS[key])) for key in keys}
    return (
        name,
        config,
        draw(st.sampled_from(sorted(SOURCES.keys() - left))),
    )


def laid_out(scheduler):
    """(timesteps, sigma/alpha, or sigma of a flow) [n] after set_timesteps, each point once, and
    the level [1] that the run ends at; none [0] of a class that does not say.
    """
    words = scheduler.config | (scheduler.config.get("moved") or {})
    dynamic = {"mu": MU} if words.get("use_dynamic_shifting") else {}
    scheduler.set_timesteps(STEPS, **dynamic)
    times = np.asarray(scheduler.timesteps.double())
    ends = scheduler.config.get("source") == "DDIMInverseScheduler"  # it tells where steps end
    if ends or getattr(scheduler, "sigmas", None) is None:
        levels, end = table_of(scheduler)[times.astype(int)], np.empty(0)
    else:
        levels = np.asarray(scheduler.sigmas.double())
        levels, end = levels[: len(times)], levels[-1:]
    if scheduler.order == 2:  # the second call of a step is at its end, or half-way to it
        times, levels = times[::2], levels[::2]
    once = np.append(True, np.diff(times) != 0.0)
    return times[once], levels[once], end


def table_of(scheduler):
    table = np.asarray(scheduler.alphas_cumprod.double())
    with np.errstate(divide="ignore"):
        return np.sqrt(1.0 / table - 1.0)


def agree(a, b):
    told = 3 if len(a[2]) == len(b[2]) else 2
    return all(
        x.shape == y.shape and np.allclose(x, y, rtol=1e-6, atol=1e-6)
        for x, y in zip(a[:told], b[:told], strict=True)
    )


def on_its_schedule(old, new):
    """Does every level of `new` belong, in the scheduler that it came from, to the label that the
    model is told there? Of a flow: is its shift, seen against the class's grid without one, the old
    one's?
    """
    times, levels, _ = laid_out(new)
    own = inspect.signature(getattr(diffusers, new.config.source)).parameters
    words = {k: v for k, v in new.config.items() if k in own} | (new.config.get("moved") or {})
    if any(words.get(key) for key in CONVERSIONS) and new._scale == "flow":
        return True  # levels between the same ends
    if new._scale == "flow":
        if "flow_shift" not in words or old.config.get("shift_terminal"):
            # FlowMatchEuler's own grid has its shift in it twice; LTX's options are in its config
            shift = words.get("flow_shift", new.config.get("shift", 1.0))
            return words.get("shift", shift) == old_shift(old)
        off = {"use_dynamic_shifting": False} if "use_dynamic_shifting" in words else {}
        bare = FsScheduler.from_config(new.config, flow_shift=1.0, **off)
        shift = np.exp(MU) if old.config.get("use_dynamic_shifting") else old_shift(old)
        odds = [s / (1.0 - s) for s in (levels, laid_out(bare)[1])]
        return np.allclose(odds[0][1:], shift * odds[1][1:], rtol=1e-4)
    told_log = words.get("timestep_type") == "continuous"
    if "sigma_data" in words or (told_log and words["prediction_type"] == "v_prediction"):
        return np.allclose(times, 0.25 * np.log(levels), atol=1e-6)
    table, rounded = table_of(old), 0.51 * any(words.get(key) for key in CONVERSIONS)
    low = table[np.maximum(np.floor(times - rounded), 0).astype(int)]
    high = table[np.minimum(np.ceil(times + rounded), len(table) - 1).astype(int)]
    # diffusers' own table multiplies t+1 float32 numbers, and 1 - alphas_cumprod loses their digits
    slack = np.finfo(np.float32).eps * (times + 2.0) * (1.0 + np.minimum(low, high) ** -2.0)
    inside = (levels >= low * (1.0 - slack)) & (levels <= high * (1.0 + slack))
    return bool((inside | (levels > 4095.0)).all())


def old_shift(old):
    return old.config.get("shift", old.config.get("flow_shift", 1.0))


def outcome(name, config, target):
    """(can diffusers' classes say it, what becomes of it here, the sentence where it is refused)"""
    try:
        old = getattr(diffusers, name)(**config)
        before = laid_out(old)
    except Exception:
        return None, "no such scheduler", None
    if config.get("use_flow_sigmas") and config.get("prediction_type"):
        return None, "no such scheduler", None  # a flow has flow_prediction
    try:
        said = agree(before, laid_out(getattr(diffusers, target).from_config(old.config)))
    except Exception:
        said = False
    try:
        new = FsScheduler.from_config(old, source=target)
        after = laid_out(new)
    except (ValueError, TypeError) as error:
        return said and NO_SIGNAL not in str(error), "refused", str(error)
    assert on_its_schedule(old, new), (name, config, target)
    return said, "equal" if agree(before, after) else "on its schedule", None


def count(examples, slow):
    """What becomes of so many pairs, and the refusals."""
    found, refusals = Counter(), []

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(pairs(slow))
    def every(pair):
        name, config, target = pair
        if name == target:
            return
        said, what, sentence = outcome(*pair)
        found[what] += said is not None
        found["said"] += said is True
        found["said and equal"] += said is True and what == "equal"
        if sentence is not None and said is not None:
            refusals.append((said, pair, sentence))
        assert not said or what != "on its schedule", pair

    every()
    return found, refusals


@pytest.mark.parametrize(
    ("examples", "slow"), [(120, False), pytest.param(1400, True, marks=pytest.mark.soak)]
)
def test_what_diffusers_can_say_is_moved_and_all_else_on_its_schedule_or_refused(examples, slow):
    """At least four of five of those that diffusers' own from_config says, timesteps and levels to
    1e-6; the rest of them, and whatever has no road, is refused with the value that differs.
    """
    found, refusals = count(examples, slow)
    tried = sum(found[what] for what in ("equal", "on its schedule", "refused"))
    print(f"\n{tried} pairs: {dict(found)}")
    for said, pair, sentence in sorted(refusals, key=lambda one: not one[0])[:20]:
        print(said, *pair, sentence)
    assert tried >= (1000 if slow else 80) and found["said"] >= tried // 20
    assert found["said and equal"] >= 0.8 * found["said"]
    for _, _, sentence in refusals:
        assert sentence.startswith("FsScheduler") or NO_SIGNAL in sentence
        assert any(word in sentence for word in ("=", " to ")), sentence
