"""Spares: a call of a kind that was run before allocates and binds nothing; no run that raised, is
in use, or whose result somebody holds comes back; memory is bounded.
"""

import gc
import resource
import threading
import weakref
from itertools import cycle

import pytest
import torch
from cases import same
from test_sampler import BACKENDS, MODEL, by_hand, net, plan_of, unit

from fastsample.kernels import native
from fastsample.runtime import results, spares
from fastsample.runtime import sampler as samplers
from fastsample.runtime.run import Run
from fastsample.runtime.sampler import Sampler

Z = unit()
GUIDED = {"cond": {"shift": 0.2}, "uncond": {"shift": -0.1}}


@pytest.fixture
def made(monkeypatch):
    """Weak references to the runs that samplers made, in order."""
    runs = []

    class Counted(Run):
        def __init__(self, *arguments, **words):
            super().__init__(*arguments, **words)
            runs.append(weakref.ref(self))

    monkeypatch.setattr(samplers, "Run", Counted)
    return runs


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc", "dpmpp_2m_sde", "heun"])
def test_later_calls_take_the_first_ones_run(name, backend, made):
    plan = plan_of(name)
    sampler = Sampler(plan, MODEL, backend=backend)
    for k in range(4):
        z = unit(seed=k)
        assert same(sampler(noise=z, seed=k), by_hand(plan, z, seed=k))
        assert same(sampler(noise=z, trajectory=True, seed=k)[0], by_hand(plan, z, seed=k))
    assert len(made) == 1


def test_what_a_run_is_made_for(made):
    """Shape, memory format, dtype, branches, preview and check: each kind has a run of its own."""
    plan, model = plan_of("euler"), lambda x, t, shift=0.0: net(x, t, shift).to(x.dtype)
    sampler, z = Sampler(plan, model), unit(2, 3, 4, 4)
    shifts = {"cond": {"shift": z[:, :1]}, "uncond": {"shift": z[:, 1:2]}, "guidance": 2.0}
    kinds = [
        {"noise": z},
        {"noise": z.to(memory_format=torch.channels_last)},
        {"noise": z.bfloat16()},
        {"noise": z[:1]},
        {"noise": z, **shifts},
        {"noise": z, **shifts, "batched_guidance": False},
        {"noise": z, "callback": lambda step, x, x0: None},
        {"noise": z, "check": None},
    ]
    for k, words in enumerate(kinds, 1):
        for _ in range(2):
            assert same(sampler(**words), Sampler(plan, model)(**words))
        assert len(made) == 3 * k
    for words in (
        {"shape": (2, 3), "seed": 1},
        {"latent": z, "start": 1},
        {"noise": z, "stage": 1},
    ):
        before = len(made)
        sampler(**words), sampler(**words)
        assert len(made) == before + 2, "begun in a way that a restart is not"


def test_without_a_seed_every_call_draws_its_own():
    plan = plan_of("euler_ancestral")
    sampler = Sampler(plan, MODEL)
    torch.manual_seed(4)
    got = [sampler(noise=Z) for _ in range(3)]
    torch.manual_seed(4)
    assert all(same(x, by_hand(plan, Z)) for x in got)
    assert not same(got[0], got[1]) and not same(got[1], got[2])


@pytest.mark.parametrize("row", range(5))
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, FloatingPointError])
def test_a_run_that_was_cut_off_is_never_handed_out_again(row, error, made):
    """By the model, by Ctrl-C, or for what the model returned, at any row, in whatever call."""
    plan, asked, broken = plan_of("unipc"), [], []

    def model(x, t):
        asked.append(1)
        if broken and len(asked) == row + 1:
            if error is FloatingPointError:
                return net(x, t) * torch.nan
            raise error("stop")
        return net(x, t)

    sampler, want = Sampler(plan, model), by_hand(plan, Z)
    for first in (True, False):  # a new run, and a spare
        if not first:
            assert same(sampler(noise=Z), want)
        asked.clear(), broken.append(1)
        with pytest.raises(error):
            sampler(noise=unit(seed=1))
        broken.clear()
        gc.collect(1)  # what holds the traceback
        assert made[-1]() is None, "nobody holds it"
    assert same(sampler(noise=Z), want) and same(sampler(noise=Z), want)
    assert len(made) == 3


def test_a_refused_start_leaves_the_sampler_well():
    plan = plan_of("euler")
    sampler = Sampler(plan, MODEL)
    want = sampler(noise=Z)
    for words in ({"noise": Z * torch.nan}, {"noise": Z, "seed": "x"}):
        with pytest.raises((ValueError, TypeError)):
            sampler(**words)
        assert same(sampler(noise=Z), want)


def test_a_model_that_samples_through_the_same_sampler(made):
    plan, depth, inner = plan_of("dpmpp_2m", 3), [], []

    def model(x, t):
        if len(depth) < 2 and t[0] < 900:
            depth.append(1)
            inner.append(sampler(noise=unit(seed=len(depth))))
            depth.pop()
        return net(x, t)

    sampler = Sampler(plan, model)
    for _ in range(2):
        assert same(sampler(noise=Z), by_hand(plan, Z))
    assert len(made) == 3, "one run for each depth"
    assert len(inner) > 2 and all(
        any(same(x, by_hand(plan, unit(seed=k))) for k in (1, 2)) for x in inner
    )


@pytest.mark.alone
def test_eight_threads_on_one_sampler():
    plan = plan_of("dpmpp_2m_sde", 4)
    sampler, noises, wrong = Sampler(plan, MODEL), [unit(2, 40, seed=k) for k in range(8)], []
    want = [by_hand(plan, z, seed=k) for k, z in enumerate(noises)]
    begin = threading.Barrier(8)

    def work(k):
        begin.wait()
        for _ in range(25):
            if not same(sampler(noise=noises[k], seed=k), want[k]):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(sampler._spares._idle) <= spares.MOST


def alive(made):
    return [run() for run in made if run() is not None]


def test_a_hundred_shapes_keep_four_runs(made):
    plan = plan_of("unipc")
    sampler = Sampler(plan, MODEL)
    for n in range(1, 101):
        sampler(noise=unit(1, n))
        assert len(alive(made)) == min(n, 4)
    assert (spares.MOST, spares.BYTES) == (4, 256 * 2**20)
    assert sorted(run.x.shape[1] for run in alive(made)) == [97, 98, 99, 100]
    for n in (97, 98, 99, 100):
        assert same(sampler(noise=unit(1, n)), by_hand(plan, unit(1, n)))
    assert len(made) == 100, "the four are those called last"


def test_runs_beyond_the_bound_are_used_once(made, monkeypatch):
    plan, z = plan_of("unipc"), unit(1, 3000)
    one = Run(plan, noise=z, preview=False).bytes
    held = sum(v.untyped_storage().nbytes() for v in (Run(plan, noise=z, preview=False)._pool.x,))
    assert held <= one + 4096 * (1 + plan.S), "the bound counts what is held"
    monkeypatch.setattr(spares, "BYTES", 2 * one)
    sampler = Sampler(plan, MODEL)
    for n in (3000, 2999, 2998, 1):
        sampler(noise=unit(1, n))
    assert sum(run.bytes for run in alive(made)) <= 2 * one
    monkeypatch.setattr(spares, "BYTES", one - 1)
    for _ in range(2):
        sampler(noise=z)
        assert all(run.x.shape != z.shape for run in alive(made))
    assert len(made) == 6


def test_release_frees_what_is_idle(made):
    sampler = Sampler(plan_of(), MODEL)
    for n in (5, 6):
        sampler(noise=unit(1, n))
    assert len(alive(made)) == 2
    sampler.release()
    assert alive(made) == []
    assert same(sampler(noise=Z), by_hand(sampler.plan, Z))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inside", [True, False], ids=["inference first", "plain first"])
def test_calls_inside_and_outside_inference_mode_alternate(inside, backend):
    for name, words in (("dpmpp_2m_sde", {}), ("unipc", {**GUIDED, "guidance": 2.0})):
        sampler = Sampler(plan_of(name), MODEL, backend=backend)
        want = [Sampler(sampler.plan, MODEL)(noise=Z, seed=k, **words) for k in range(6)]
        for k in range(6):
            with torch.inference_mode((k % 2 == 0) == inside):
                assert same(sampler(noise=Z, seed=[k, k + 1, k + 2], **words), want[k])


def mapped(x):
    """The same pages by another mapping, as another process has them."""
    storage = x.share_memory_().untyped_storage()
    return torch.UntypedStorage._new_shared_fd_cpu(*storage._share_fd_cpu_())


HOLDERS = {  # of a result x: what is kept, and how the first sample is read from it
    "x": (lambda x: x, lambda x: x[0]),
    "x[0]": (lambda x: x[0], lambda x: x),
    "view": (lambda x: x.view(-1)[:10], lambda x: x.view(2, 5)),
    "numpy": (lambda x: x.numpy(), lambda a: torch.from_numpy(a)[0]),
    "memoryview": (lambda x: memoryview(x.numpy()), lambda m: torch.from_numpy(m.obj)[0]),
    "capsule": (lambda x: x.__dlpack__(), lambda c: torch.utils.dlpack.from_dlpack(c)[0]),
    "storage": (lambda x: x.untyped_storage(), lambda s: torch.tensor([]).set_(s)[:10].view(2, 5)),
    "cycle": (lambda x: (a := [x], a.append(a))[0], lambda a: a[0][0]),
    "mapping": (mapped, lambda s: torch.tensor([]).set_(s)[:10].view(2, 5)),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_result_that_somebody_holds_is_never_written_again(holder):
    plan = plan_of("unipc")
    sampler, (hold, read) = Sampler(plan, MODEL), HOLDERS[holder]
    want = [by_hand(plan, unit(seed=k))[0] for k in range(7)]
    for k in range(3):
        kept = hold(sampler(noise=unit(seed=k)))
        for later in range(k + 1, k + 5):
            sampler(noise=unit(seed=later))
        assert same(read(kept), want[k])
        del kept


def test_memory_that_nobody_holds_is_handed_out_again(monkeypatch):
    """Two in turn, where a result is named; with what a call did to it undone."""
    sampler, want = Sampler(plan_of(), MODEL), by_hand(plan_of(), Z)
    seen = set()
    for _ in range(6):
        x = sampler(noise=Z)
        assert same(x, want) and not x.requires_grad and x._version == 0 and x._base is None
        seen.add(x.data_ptr())
        x.add_(1).requires_grad_()
    assert len(seen) == 2
    x.detach().resize_(2, 3, 2, 5), x.detach().untyped_storage().resize_(0)
    assert same(sampler(noise=Z), want)
    monkeypatch.setattr(results, "ALONE", None)  # a torch that does not say who holds what
    other = Sampler(plan_of(), MODEL)
    kept = [other(noise=Z) for _ in range(6)]
    assert len({x.data_ptr() for x in kept}) == 6 and all(same(x, want) for x in kept)


def test_what_callbacks_and_trajectories_gave_stays():
    plan, kept = plan_of("unipc"), []
    sampler = Sampler(plan, MODEL)
    x0, states = sampler(
        noise=Z, trajectory=True, callback=lambda step, x, x0: kept.append(x0.clone())
    )
    copies = x0.clone(), states.clone()
    sampler(noise=unit(seed=3), trajectory=True, callback=lambda step, x, x0: None)
    assert same(x0, copies[0]) and same(states, copies[1])


@pytest.mark.alone
@pytest.mark.skipif(native.MISSING is not None, reason="the reference allocates")
@pytest.mark.parametrize("named", [False, True], ids=["dropped", "named"])
@pytest.mark.parametrize(
    "shape", [(50, 32), (1, 4, 64, 64), (1, 16, 128, 128), (1, 16, 21, 60, 104)], ids=str
)
def test_no_page_is_faulted_from_the_fourth_call_on(shape, named):
    """The caller drops the result, at once or for the next, and the model allocates nothing.

    A call that allocates faults in each of the five windows of five calls. What faults in one of
    them is not the call's: the count is the whole process's, and the system may take back a page.
    """
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    outputs = [torch.randn(shape, generator=torch.Generator().manual_seed(k)) for k in range(4)]
    turn = cycle(outputs)
    sampler = Sampler(plan_of("dpmpp_2m", 10), lambda x, t: next(turn))

    def faulted(calls):
        nonlocal x
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(calls):
            x = sampler(noise=z, seed=1)
            x = x if named else None
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    x = None
    faulted(3)
    gc.collect(), gc.disable()
    try:
        windows = [faulted(5) for _ in range(5)]
    finally:
        gc.enable()
    assert sorted(windows)[-2] == 0, windows


@pytest.mark.parametrize("backend", BACKENDS)
def test_check(backend):
    """ "end": the noise before the run and the status at its end; None: neither."""
    sampler, n = Sampler(plan_of(), MODEL, backend=backend), 2048
    loud = unit(1, n) * 3
    bad = Sampler(plan_of(), lambda x, t: net(x, t) * torch.nan, backend=backend)
    for _ in range(2):
        with pytest.raises(ValueError, match="standard deviation"):
            sampler(noise=loud)
        assert same(sampler(noise=loud, check=None), by_hand(sampler.plan, loud, check=None))
        with pytest.raises(FloatingPointError, match="sample 0 became non-finite at row 1"):
            bad(noise=unit(1, n))
        assert bool(bad(noise=unit(1, n), check=None).isnan().all())
    with pytest.raises(ValueError, match="check"):
        sampler(noise=loud, check="always")


def test_without_a_check_nothing_is_read(monkeypatch):
    monkeypatch.setattr(native, "energy", lambda v: pytest.fail("noise was looked at"))
    monkeypatch.setattr(samplers.arguments, "check_values", lambda *a: pytest.fail("looked at"))
    sampler = Sampler(plan_of(), MODEL)
    assert same(sampler(noise=Z, check=None), sampler(noise=Z, check=None))
