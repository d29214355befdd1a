"""A run keeps the memory format of the noise it began from: channels last gives the bits of the
contiguous run, noise included, and the model is asked, and answers, in it without a copy.
"""

import pytest
import torch
from cases import BACKENDS, same
from test_sampler import net, plan_of, unit

from fastsample.guidance import guided
from fastsample.runtime.run import Run
from fastsample.runtime.sampler import Sampler
from fastsample.solvers import SOLVERS

SHAPES = {torch.channels_last: (2, 3, 5, 4), torch.channels_last_3d: (2, 3, 2, 5, 4)}
NOISY = {"ddim": {"eta": 1.0}}


def both(shape=(2, 3, 5, 4), form=torch.channels_last, **words):
    z = unit(*shape, **words)
    return z, z.to(memory_format=form)


def finished(run, model=net):
    while not run.done:
        run.step(model(run.model_input, run.t))
    return run.x


@pytest.mark.pairs(name=[*SOLVERS], form=[*SHAPES], backend=BACKENDS)
def test_every_solver_gives_the_bits_of_the_contiguous_run(name, form, backend):
    plan, (plain, last) = plan_of(name, **NOISY.get(name, {})), both(SHAPES[form], form)
    words = {"stage": 1, "noise_scale": [1.0, 0.5] if plan.L else None}
    want, got = (Run(plan, noise=z, seed=3, backend=backend, **words) for z in (plain, last))
    while not want.done:
        for value in (got.x, got.model_input, *([got.x0] if got.x0 is not None else [])):
            assert value.is_contiguous(memory_format=form) and not value.is_contiguous()
        for run in (want, got):
            run.step(net(run.model_input, run.t))
        assert same(got.x, want.x) and same(got.x0, want.x0)
    got.restart(last, seed=4)
    assert same(finished(got), finished(Run(plan, noise=plain, seed=4, **words)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_outputs_in_the_format_are_taken_as_they_lie(dtype, monkeypatch):
    """Any other is copied into it: the same bits."""
    plan, (plain, last) = plan_of("unipc"), both(dtype=dtype)
    model = lambda x, t: net(x.float(), t).to(dtype)
    want = finished(Run(plan, noise=plain), model)
    slow, look = [], Run._slow
    monkeypatch.setattr(Run, "_slow", lambda *a: (slow.append(1), look(*a))[1])
    assert same(finished(Run(plan, noise=last), model), want) and not slow
    other = lambda x, t: model(x, t).contiguous()
    assert same(finished(Run(plan, noise=last), other), want) and len(slow) == plan.nfe


@pytest.mark.parametrize("backend", BACKENDS)
def test_draws_masks_and_branches_are_brought_into_it(backend):
    plain, last = both()
    mask = torch.rand(2, 1, 5, 4, generator=torch.Generator().manual_seed(1))
    sde, inpaint = plan_of("euler_ancestral"), plan_of("euler", inpaint=True)
    split = lambda x, t: [net(x, t), net(x, t, 0.2)]
    calls = [
        (sde, {"noise_source": lambda row, k: unit(2, 3, 5, 4, seed=row)}, net),
        (inpaint, {"mask": mask, "known": unit(2, 3, 5, 4, seed=9)}, net),
        (inpaint, {"mask": mask[:1], "known": both(seed=9)[1][:1]}, net),
        (guided(sde), {"guidance": [2.0, 3.0]}, split),
        (guided(sde), {"guidance": 2.0, "copies": 2}, net),
    ]
    for plan, words, model in calls:
        ends = [
            finished(Run(plan, noise=z, seed=2, backend=backend, **words), model)
            for z in (plain, last)
        ]
        assert same(*ends)


def test_a_sampler_returns_the_format_it_was_given():
    sampler, (plain, last) = Sampler(plan_of("dpmpp_2m_sde"), net), both()
    for _ in range(3):
        got = sampler(noise=last, seed=1)
        assert got.is_contiguous(memory_format=torch.channels_last)
        assert same(got, sampler(noise=plain, seed=1))


ORDERS = {  # the axes C, H, W as they lie -> channels; None: no kernel draws in that order
    (1, 2, 3): 1,
    (2, 3, 1): 3,
    (3, 1, 2): 15,
    (1, 3, 2): None,
    (2, 1, 3): None,
    (3, 2, 1): None,
}


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_noise_belongs_to_the_element_however_it_lies(order, backend):
    plan, plain = plan_of("euler_ancestral"), unit(2, 3, 5, 4)
    back = [0, *(order.index(k) + 1 for k in (1, 2, 3))]
    laid = plain.permute(0, *order).contiguous().permute(back)
    run = Run(plan, noise=laid, seed=3, backend=backend)
    assert run.x.stride() == laid.stride() and run._pool.channels == ORDERS[order]
    assert bool(run.given_noise()) == (ORDERS[order] is None)
    assert same(finished(run), finished(Run(plan, noise=plain, seed=3, backend=backend)))


def test_axes_of_one_element_lie_anywhere():
    known = {(2, 1, 5, 4): 1, (2, 3, 1, 1): 1, (2, 3, 1, 4): 3, (2, 0, 5): 1}
    for shape, channels in known.items():
        z = unit(*shape)
        z = z.to(memory_format=torch.channels_last) if z.dim() == 4 else z
        assert Run(plan_of("euler_ancestral"), noise=z, seed=3)._pool.channels == channels
