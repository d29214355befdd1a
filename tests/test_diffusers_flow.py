"""FlowMatchEulerDiscreteScheduler, whole: grids, labels and steps of FsScheduler against its own,
value for value; and what neither can do, in a sentence.
"""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastsample
from tests.oracle.pipelines import network, start

diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.set_verbosity_error()
from tests.beside import COMMON  # noqa: E402 (imports diffusers)

# diffusers' own
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
FsScheduler = fastsample.FsScheduler
NAME = "FlowMatchEulerDiscreteScheduler"
Peer = diffusers.FlowMatchEulerDiscreteScheduler
EPS = float(np.finfo(np.float32).eps)


def ours(compat="diffusers", **config):
    return FsScheduler.from_config(Peer(**config), compat=compat)


# -- grids -----------------------------------------------------------------------------------------
def lists():
    """What set_timesteps is asked for: a count, sigmas of every type, timesteps, or both."""
    falls = st.lists(st.integers(0, 1000), min_size=1, max_size=6)
    falls = falls.map(lambda v: sorted(v, reverse=True))
    as_sigmas = st.sampled_from([list, tuple, np.array, np.float32, torch.tensor])
    sigmas = st.builds(lambda v, kind: {"sigmas": kind([t / 1000 for t in v])}, falls, as_sigmas)
    times = falls.map(lambda v: {"timesteps": v})
    both = falls.map(lambda v: {"sigmas": [t / 1000 for t in v], "timesteps": v})
    count = st.sampled_from([1, 2, 3, 7, 50, 300]).map(lambda n: {"num_inference_steps": n})
    return st.one_of(count, sigmas, times, both)


def configs():
    kinds = [{}, *({f"use_{kind}_sigmas": True} for kind in ("karras", "exponential", "beta"))]
    words = {
        "shift": st.sampled_from([0.5, 1.0, 3.0, 5.0]),
        "use_dynamic_shifting": st.booleans(),
        "time_shift_type": st.sampled_from(["exponential", "linear"]),
        "shift_terminal": st.sampled_from([None, 0.02, 0.1]),
        "invert_sigmas": st.booleans(),
        "num_train_timesteps": st.sampled_from([1000, 1000, 100, 1]),
    }
    return st.builds(lambda a, b: a | b, st.fixed_dictionaries(words), st.sampled_from(kinds))


def asked(scheduler, words):
    """(timesteps, sigmas) in float64, or None where it raises or says what is not finite."""
    with np.errstate(all="ignore"):
        try:
            scheduler.set_timesteps(**words)
        except (ValueError, ZeroDivisionError):
            return None
    told = scheduler.timesteps.double(), scheduler.sigmas.double()
    return told if all(v.isfinite().all() for v in told) else None


@settings(max_examples=150, derandomize=True, deadline=None)
@given(config=configs(), words=lists(), mu=st.sampled_from([0.3, 1.15, 2.0]))
def test_every_grid_is_the_peers(config, words, mu):
    """compat bit for bit, None to rounding; refused only where the peer raises or divides by 0."""
    size = config["num_train_timesteps"]
    if "timesteps" in words:
        words = words | {"timesteps": [t * size / 1000 for t in words["timesteps"]]}
    words = words | ({"mu": mu} if config["use_dynamic_shifting"] else {})
    theirs = asked(Peer(**config), words)
    for compat in ("diffusers", None):
        found = asked(ours(compat, **config), words)
        assert theirs is None or found is not None
        assert compat is None or found is None or theirs is not None
        if theirs is None:  # the exact levels may exist there
            continue
        for a, b in zip(found, theirs, strict=True):
            assert a.shape == b.shape
            if compat:
                assert torch.equal(a, b)
            else:  # float32 labels up to T; stretching divides by 1 - s[-1]
                assert (a - b).abs().max() <= 32 * EPS * max(1.0, float(b.abs().max()))


def test_a_list_has_as_many_steps_as_numbers():
    """With or without the final 0, in both modes; timesteps alone are shifted like sigmas."""
    for compat in ("diffusers", None):
        scheduler = ours(compat, shift=3.0)
        scheduler.set_timesteps(sigmas=[1.0, 0.5, 0.0])
        assert scheduler.timesteps.tolist() == [1000.0, 750.0, 0.0]
        assert scheduler.sigmas.tolist() == [1.0, 0.75, 0.0, 0.0]
        scheduler.set_timesteps(sigmas=[1.0, 0.5])
        assert scheduler.sigmas.tolist() == [1.0, 0.75, 0.0]
        scheduler.set_timesteps(timesteps=[1000.0, 500.0])
        assert scheduler.timesteps.tolist() == [1000.0, 500.0]
        assert scheduler.sigmas.tolist() == [1.0, 0.75, 0.0]


@pytest.mark.parametrize("compat", ["diffusers", None])
def test_a_shift_set_later_is_the_peers(compat):
    """It shifts what the constructor's own shift has laid out, and lists."""
    for words in ({"num_inference_steps": 7}, {"sigmas": [0.9, 0.4]}, {"timesteps": [800, 90]}):
        found = []
        for scheduler in (Peer(shift=3.0), ours(compat, shift=3.0)):
            scheduler.set_shift(1.7)
            scheduler.set_timesteps(**words)
            assert scheduler.shift == 1.7
            found.append(scheduler.sigmas)
        assert torch.allclose(*found, rtol=0, atol=4 * EPS)


# -- steps -----------------------------------------------------------------------------------------
LISTS = {
    "count": {"num_inference_steps": 6},
    "repeats": {"sigmas": [1.0, 1.0, 0.6, 0.6, 0.6, 0.2]},
    "final 0": {"sigmas": [0.9, 0.4, 0.0]},
    "one step": {"num_inference_steps": 1},
    "labels": {"sigmas": [1.0, 0.7, 0.7, 0.2], "timesteps": [1000.0, 800.0, 600.0, 100.0]},
}
KINDS = [{}, {"shift": 3.0}, {"stochastic_sampling": True}, {"invert_sigmas": True, "shift": 2.0}]


def walk(scheduler, words, *, begin=0, sign=1.0, copied=False, x=None, **given):
    """(end, largest state) of a pipeline's loop; copied: half the way on a deep copy."""
    scheduler.set_timesteps(**words)
    scheduler.set_begin_index(begin)
    x = start(2, 3, 4, 4) if x is None else x
    most = float(x.abs().max())
    for i, t in enumerate(scheduler.timesteps[begin:]):
        scheduler = copy.deepcopy(scheduler) if copied and i == 1 else scheduler
        x = scheduler.step(sign * network(x, t), t, x, return_dict=False, **given)[0]
        most = max(most, float(x.abs().max()))
    return x, most


@pytest.mark.parametrize("words", LISTS.values(), ids=LISTS)
@pytest.mark.parametrize("config", KINDS, ids=lambda c: "-".join(c) or "plain")
def test_every_step_is_the_peers(config, words):
    """From the start, from the middle, on a copy; one draw a step from the generator, also where it
    is multiplied by 0. Bound: 8 float32 roundings a step through a network of slope 3.
    """
    for begin, copied in ((0, False), (0, True), (1, False)):
        scheduler = ours(**config)
        steps = len(next(iter(words.values()))) if "sigmas" in words else 6
        if begin and words == LISTS["one step"]:
            continue
        ends = []
        for s in (Peer(**config), scheduler):
            generator = torch.Generator().manual_seed(4)
            x, most = walk(s, words, begin=begin, copied=copied, generator=generator)
            ends.append((x, torch.randn(1, generator=generator)))
        (a, next_a), (b, next_b) = ends
        assert (a - b).abs().max() <= 8 * steps * EPS * most
        assert torch.equal(next_a, next_b) and a.shape == b.shape


@pytest.mark.parametrize("config", KINDS, ids=lambda c: "-".join(c) or "plain")
def test_steps_are_a_float64_loop(config):
    """Exact mode against the formulas: s = shift u/(1 + (shift - 1) u), x' = x + (s' - s) v, or
    (1 - s') (x - s v) + s' n.
    """
    levels, shift = [1.0, 0.6, 0.6, 0.25], config.get("shift", 1.0)
    scheduler, x = ours(None, **config), start(2, 3, 4, 4, dtype=torch.float64)
    inverted = bool(config.get("invert_sigmas"))
    s = [shift * u / (1 + (shift - 1) * u) for u in levels] + [0.0]
    noises = [start(2, 3, 4, 4, dtype=torch.float64, seed=k) for k in range(1, 5)]
    scheduler.set_timesteps(sigmas=levels)
    y = x
    for i, t in enumerate(scheduler.timesteps):
        assert float(t) == pytest.approx(1000 * (1 - s[i] if inverted else s[i]), abs=1e-4)
        v, w = network(x, t), network(y, t)
        n = noises[i] if config.get("stochastic_sampling") else None
        y = scheduler.step(w, t, y, variance_noise=n).prev_sample
        if n is None:
            x = x + (s[i + 1] - s[i]) * (-v if inverted else v)
        else:
            x = (1 - s[i + 1]) * (x - s[i] * v) + s[i + 1] * n
    assert (x - y).abs().max() <= 1e-12 * x.abs().max()


@pytest.mark.parametrize("tokens", ["all at once", "one a sample", "each its own"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", KINDS, ids=lambda c: "-".join(c) or "plain")
def test_tokens_step_as_the_peers(config, dtype, tokens):
    """Bit for bit, float32 out, and on from there without tokens."""
    share = torch.linspace(0, 1, 12).view(2, 6) * 1000
    ends = []
    for scheduler in (Peer(**config), ours(**config)):
        scheduler.set_timesteps(5)
        generator, x = torch.Generator().manual_seed(4), start(2, 6, 3).to(dtype)
        for i, t in enumerate(scheduler.timesteps):
            told = {"one a sample": t.expand(2, 1), "all at once": t.expand(2, 6)}
            told = told.get(tokens, torch.minimum(t, share))
            given = {"per_token_timesteps": told} if i < 4 else {}
            f = network(x, t) * (-1 if i < 4 else 1)
            x = scheduler.step(f, t, x, generator=generator, return_dict=False, **given)[0]
            assert i == 4 or x.dtype == torch.float32
        ends.append(x)
    assert ends[0].dtype == ends[1].dtype
    assert (ends[0] - ends[1]).abs().max() <= 8 * EPS * ends[0].abs().max()


def test_a_token_hardly_above_a_level_stands_on_it():
    """As the peer has it: 1e-6 in sigma is the bound, so these two go one level apart."""
    told, x, f = torch.tensor([[600.0005, 600.002]]), start(1, 2, 3), start(1, 2, 3, seed=1)
    ends = []
    for scheduler in (Peer(), ours(), ours(None)):
        scheduler.set_timesteps(sigmas=[1.0, 0.6, 0.3])
        t = scheduler.timesteps[1]
        ends.append(scheduler.step(f, t, x, per_token_timesteps=told).prev_sample)
    assert torch.equal(ends[0], ends[1]) and torch.allclose(ends[0], ends[2], atol=1e-6)
    went = (ends[2] - x) / f
    assert torch.allclose(went, torch.tensor([[0.3], [2e-6]]).expand(2, 3), atol=1e-6)


def test_tokens_draw_from_x0_of_their_sign_without_compat():
    """(1 - s') (x + s f) + s' n; diffusers subtracts an output whose sign it expects turned."""
    scheduler = ours(None, stochastic_sampling=True)
    scheduler.set_timesteps(sigmas=[1.0, 0.5, 0.25])
    x, f, n = (start(1, 2, 3, seed=k) for k in range(3))
    told = torch.tensor([[1000.0, 500.0]])
    got = scheduler.step(f, 1000.0, x, variance_noise=n, per_token_timesteps=told).prev_sample
    now, to = torch.tensor([[1.0], [0.5]]), torch.tensor([[0.5], [0.25]])
    assert torch.allclose(got, (1 - to) * (x + now * f) + to * n, atol=1e-6)


BOTH = [torch.float32, torch.bfloat16]


@pytest.mark.pairs(source=[*COMMON], x_dtype=BOTH, f_dtype=BOTH)
def test_the_next_samples_dtype_is_the_peers(source, x_dtype, f_dtype):
    config = {"skip_prk_steps": True} if source.startswith("PNDM") else {}
    peer = getattr(diffusers, source)(**config)
    exact, scheduler = (FsScheduler.from_config(peer, compat=c) for c in (None, "diffusers"))
    dtypes = []
    for s in (peer, scheduler, exact):
        s.set_timesteps(4)
        x, seen = start(1, 3, 4, 4, dtype=x_dtype), []
        for t in s.timesteps[:3]:
            x = s.step(start(1, 3, 4, 4, dtype=f_dtype), t, x)[0]
            seen.append(x.dtype)
        dtypes.append(seen)
    assert dtypes[0] == dtypes[1] and dtypes[2] == [x_dtype] * 3


def test_another_dtype_of_the_output_leaves_the_values():
    """A float32 sample beside a bfloat16 network: what is handed back is bfloat16, the state behind
    it float32, also in the runs that later loops take over.
    """
    scheduler, x = ours(shift=3.0), start(2, 3, 8, 8)
    half = lambda x, t: network(x.float(), t).bfloat16()
    ends = []
    for _ in range(3):
        scheduler.set_timesteps(6)
        y = x
        for t in scheduler.timesteps:
            y = scheduler.step(half(y, t), t, y).prev_sample
        ends.append(y)
    assert all(torch.equal(ends[0], y) and y.dtype == torch.bfloat16 for y in ends)
    z, s = x.double(), [*scheduler.sigmas.double()]
    for i, t in enumerate(scheduler.timesteps):
        z = z + (s[i + 1] - s[i]) * half(z.bfloat16() if i else z, t).double()
    assert (ends[0].double() - z).abs().max() <= 2**-8 * z.abs().max()


@pytest.mark.parametrize("inverted", [False, True])
def test_noise_is_scaled_as_the_peers(inverted):
    """With inverted sigmas diffusers gives noise the weight 1 - sigma; exact is the level."""
    x, n = start(2, 3), start(2, 3, seed=1)
    peer, scheduler, exact = (
        Peer(invert_sigmas=inverted, shift=3.0),
        ours(invert_sigmas=inverted, shift=3.0),
        ours(None, invert_sigmas=inverted, shift=3.0),
    )
    for s in (peer, scheduler, exact):
        s.set_timesteps(6)
    for at in (0, 2, 5):
        a, b, c = (s.scale_noise(x, s.timesteps[[at]], n) for s in (peer, scheduler, exact))
        assert torch.allclose(a, b, atol=4 * EPS)
        level = float(peer.sigmas[at])
        level = 1 - level if inverted else level
        assert torch.allclose(c, (1 - level) * x + level * n, atol=1e-6)


def test_the_settings_of_churn_are_taken_and_change_nothing():
    """The class takes them and reads none."""
    words = {"s_churn": 2.0, "s_tmin": 0.1, "s_tmax": 0.9, "s_noise": 1.1}
    for scheduler in (Peer(shift=3.0), ours(shift=3.0), ours(None, shift=3.0)):
        ends = [walk(scheduler, LISTS["count"], **given)[0] for given in ({}, words)]
        assert torch.equal(*ends)


# -- sentences -------------------------------------------------------------------------------------
def refused():
    """(config, arguments of set_timesteps, sentence)"""
    two = {"use_karras_sigmas": True, "use_beta_sigmas": True}
    yield two, None, "use_karras_sigmas and use_beta_sigmas = True at once; one of them is accepted"
    word = "time_shift_type = 'cubic'; 'exponential' or 'linear' is accepted"
    yield {"time_shift_type": "cubic"}, None, word
    yield {"shift_terminal": 1.0}, None, "shift_terminal = 1.0; a number from 0"
    both = {"invert_sigmas": True, "stochastic_sampling": True}
    yield both, None, "invert_sigmas and stochastic_sampling = True at once, which ends in noise"
    one = "shift_terminal = 0.1 and 1 step from sigma 1 to 1, which cannot end at 0.1; two levels"
    yield {"shift_terminal": 0.1}, {"num_inference_steps": 1}, one
    yield {"shift_terminal": 0.1}, {"sigmas": [1.0, 1.0]}, "and 2 steps from sigma 1 to 1, which"
    dynamic = {"use_dynamic_shifting": True}
    yield dynamic, {"num_inference_steps": 4}, "mu = None with use_dynamic_shifting=True; a number"
    linear = dynamic | {"time_shift_type": "linear"}
    yield linear, {"num_inference_steps": 4, "mu": -1.0}, "mu = -1.0 with use_dynamic_shifting=True"
    rising = "numbers that never rise from 1 down to 0 are accepted"
    yield {}, {"sigmas": [0.5, 0.6, 0.1]}, rising
    yield {}, {"timesteps": [500, 600, 1]}, "numbers that never rise from 1000 down to 0"
    yield {}, {"num_inference_steps": 3, "sigmas": [1.0, 0.5]}, "steps [2, 3] were asked"
    log = "use_exponential_sigmas=True from sigma 0.5 to 0; finite levels"
    yield {"use_exponential_sigmas": True}, {"sigmas": [0.5, 0.0]}, log


@pytest.mark.parametrize("compat", ["auto", "diffusers", None])
@pytest.mark.parametrize(("config", "words", "sentence"), list(refused()))
def test_what_nobody_can_do_is_said_in_one_sentence(config, words, sentence, compat):
    """The same in every mode: no advice that does not help."""
    with pytest.raises(ValueError) as error, np.errstate(all="ignore"):
        scheduler = FsScheduler(source=NAME, compat=compat, **config)
        scheduler.set_timesteps(**words)
    said = str(error.value)
    assert sentence in said and "\n" not in said and "compat" not in said


def test_the_advice_of_those_sentences_helps():
    FsScheduler(source=NAME, use_beta_sigmas=True).set_timesteps(4)
    FsScheduler(source=NAME, time_shift_type="linear").set_timesteps(4)
    scheduler = FsScheduler(source=NAME, shift_terminal=0.1)
    scheduler.set_timesteps(2)
    assert float(scheduler.sigmas[1]) == pytest.approx(0.1)
    FsScheduler(source=NAME, shift_terminal=None).set_timesteps(1)


@pytest.mark.parametrize("source", ["EulerDiscrete", "DPMSolverMultistep", "UniPCMultistep"])
def test_an_unknown_end_of_the_levels_is_refused(source):
    with pytest.raises(ValueError, match="final_sigmas_type = 'foo'; 'zero' or 'sigma_min' is"):
        FsScheduler(source=f"{source}Scheduler", final_sigmas_type="foo")


def bad_tokens():
    yield torch.zeros(2, 6, 1), "per_token_timesteps is [2, 6, 1] for a sample of [2, 6, 3]"
    yield torch.zeros(2, 5), "per_token_timesteps is [2, 5] for a sample of [2, 6, 3]"
    yield 500.0, "per_token_timesteps is a float; a tensor [B,N]"


@pytest.mark.parametrize(("tokens", "sentence"), list(bad_tokens()))
def test_tokens_that_do_not_fit_are_refused_and_leave_nothing_behind(tokens, sentence):
    scheduler, x = ours(), start(2, 6, 3)
    scheduler.set_timesteps(3)
    with pytest.raises((TypeError, ValueError)) as error:
        scheduler.step(x, scheduler.timesteps[0], x, per_token_timesteps=tokens)
    assert sentence in str(error.value) and scheduler.step_index is None
    good, t = {"per_token_timesteps": torch.full((2, 6), 1000.0)}, scheduler.timesteps
    with pytest.raises(ValueError, match="nothing is broadcast"):
        scheduler.step(x[:1], t[0], x, **good)
    x = scheduler.step(x, t[0], x, **good).prev_sample
    with pytest.raises(ValueError, match="is out of order; 500.5 is next"):
        scheduler.step(x, t[2], x, **good)
    scheduler.step(x, t[1], x)


def test_a_run_of_one_training_timestep():
    """OmniGen's config: T = 1, so labels are levels."""
    config = {"num_train_timesteps": 1, "invert_sigmas": True}
    peer, scheduler = Peer(**config), ours(**config)
    for s in (peer, scheduler):
        s.set_timesteps(sigmas=np.linspace(1, 0, 6)[:5])
    assert torch.equal(peer.timesteps, scheduler.timesteps)
    assert torch.equal(peer.sigmas, scheduler.sigmas)
    assert math.isclose(float(scheduler.timesteps[1]), 0.2, rel_tol=1e-6)
