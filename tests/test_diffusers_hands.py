"""Foreign hands on an FsScheduler: what is asked for by name, copied out of it or written to it."""

import copy
import threading

import pytest
import torch

from fastsample.interop.diffusers.outside import PAST, STATE

diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.set_verbosity_error()
from tests.beside import CONFIGS, READ, SD, N, X, alike, both, set_both  # noqa: E402 (imports diffusers)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.parametrize(("name", "config"), CONFIGS)
def test_hasattr_answers_at_any_time(name, config):
    peer, ours = both(name, config)
    names = set(dir(peer)) | set(READ) | STATE | {"nothing_of_the_kind", "model_input", "plan"}
    names |= {"items", "__slotnames__"}  # which a dict has, and its class once it was copied
    asked = lambda scheduler: {n: hasattr(scheduler, n) for n in sorted(names)}
    before = asked(ours)
    assert not before["nothing_of_the_kind"] and not before["items"]
    set_both(peer, ours)
    assert all(isinstance(v, bool) for v in asked(ours).values())


def test_a_thread_without_a_loop_has_no_timesteps():
    _, ours = both("EulerDiscreteScheduler", {})
    loops, wait, done = [], threading.Event(), threading.Barrier(3)

    def begin():
        ours.set_timesteps(3)
        loops.append(ours._loops.get())
        done.wait()
        wait.wait()

    threads = [threading.Thread(target=begin) for _ in range(2)]
    for thread in threads:
        thread.start()
    done.wait()
    try:
        assert not hasattr(ours, "timesteps") and not hasattr(ours, "sigmas")
        with pytest.raises(ValueError, match="2 other threads have a loop and this one has none"):
            _ = ours.timesteps
    finally:
        wait.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize(("name", "config"), CONFIGS)
def test_a_copy_of_its_dict_is_a_copy_of_its_state(name, config):
    """Two samples that take turns on one scheduler, its __dict__ swapped before every step, go the
    way that each goes alone.
    """
    peer, ours = both(name, config)
    set_both(peer, ours)
    xs = [X.float(), N.float()]
    alone = []
    for x in xs:
        twin = copy.deepcopy(ours)
        for t in twin.timesteps:
            given = {"generator": torch.Generator().manual_seed(3)} if _draws(name) else {}
            x = twin.step(0.1 * x, t, x, **given).prev_sample
        alone.append(x)
    kept = [copy.deepcopy(ours.__dict__) for _ in xs]
    for t in ours.timesteps:
        for k, x in enumerate(xs):
            ours.__dict__.update(kept[k])
            given = {"generator": torch.Generator().manual_seed(3)} if _draws(name) else {}
            xs[k] = ours.step(0.1 * x, t, x, **given).prev_sample
            kept[k] = copy.deepcopy(ours.__dict__)
    assert all(torch.equal(a, b) for a, b in zip(xs, alone, strict=True))


def _draws(name):
    drawing = "Ancestral", "DDPM", "LCM", "TCD", "SASolver", "CMStochastic", "Cosine"
    return any(word in name for word in drawing)


@pytest.mark.parametrize(("name", "config"), CONFIGS)
def test_a_documented_attribute_is_set_or_refused_in_a_sentence(name, config):
    peer, ours = both(name, config)
    for _ in range(2):
        for what in [*READ, *STATE]:
            if not hasattr(peer, what) or what in ("step_index", "begin_index"):
                continue
            if what in PAST:  # nothing reads it before the first step has written it
                setattr(ours, what, [X])
                continue
            value = getattr(ours, what, None)
            if isinstance(value, torch.Tensor):
                setattr(ours, what, value.clone().to("cpu"))
                assert torch.equal(getattr(ours, what), value)
                other = value + 1
            else:
                other = 9 if not isinstance(value, bool) else not value
            with pytest.raises(
                AttributeError, match=rf"FsScheduler\.{what} cannot be set.*;.*is acc"
            ):
                setattr(ours, what, other)
            assert alike(getattr(ours, what, None), value)
        set_both(peer, ours)
    x = X.float()
    before = [ours.step(0.1 * x, ours.timesteps[0], x).prev_sample for _ in range(1)][0]
    for what in PAST:
        if hasattr(peer, what):
            with pytest.raises(AttributeError, match=r"cannot be set: .*; .*is accepted"):
                setattr(ours, what, [X])
    ours._step_index = None  # begins again
    assert ours.step_index is None
    if not _draws(name):
        assert torch.equal(ours.step(0.1 * x, ours.timesteps[0], x).prev_sample, before)
    ours._step_index = None
    ours._begin_index = 2
    assert ours.begin_index == ours._begin_index == 2
    ours.step(0.1 * x, ours.timesteps[2], x)
    assert ours.step_index == ours._step_index == 3


def test_timesteps_put_back_in_another_dtype_are_still_the_run():
    _, ours = both("DPMSolverMultistepScheduler", SD)
    ours.set_timesteps(5)
    own = copy.deepcopy(ours)
    ours.timesteps = ours.timesteps.to(torch.float16)
    x = y = X.float()
    for t, other in zip(ours.timesteps, own.timesteps, strict=True):
        assert t.dtype == torch.float16
        x, y = ours.step(0.1 * x, t, x).prev_sample, own.step(0.1 * y, other, y).prev_sample
        assert torch.equal(x, y)


@pytest.mark.parametrize("compat", ["diffusers", None])
def test_sigmas_written_in_place_are_no_silent_change(compat):
    """Pipelines of the Cosmos family set the last level so. The sentence's advice works."""
    _, ours = both("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, compat=compat)
    x = X.float()
    for kept in range(2):  # with a new run, and with one that another loop left
        ours.set_timesteps(5)
        if kept:
            end = x
            for t in ours.timesteps:
                end = ours.step(0.1 * x, t, end).prev_sample
            ours.set_timesteps(5)
        ours.sigmas[-1] = ours.sigmas[-2]
        with pytest.raises(ValueError, match=r"sigmas was written to, .*; .* are accepted"):
            ours.step(0.1 * x, ours.timesteps[0], x)
        ours.set_timesteps(5)
        before = ours.sigmas
        ours.sigmas = before.double()
        assert ours.sigmas.dtype == torch.float64
        ours.step(0.1 * x, ours.timesteps[0], x)
    ours.set_timesteps(sigmas=[1.0, 0.5, 0.2])
    ours.step(0.1 * x, ours.timesteps[0], x)
