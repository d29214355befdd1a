"""Samples re-ordered, dropped and repeated half-way: the end is final[index] of the run that was
left alone, to the bit, with all that a sample has moving with it.
"""

import warnings

import numpy as np
import pytest
import torch
from cases import BACKENDS, same
from choosing import FLOW, finish, inpainting, net, plan_of, unit

import fastsample as fs
from fastsample import guidance
from fastsample.interop.k_diffusion import k_sample
from fastsample.solvers import SOLVERS

INDICES = {
    "order": [2, 0, 3, 1],
    "fewer": torch.tensor([3, 1]),
    "one": np.array([2]),
    "none": [],
    "repeated": (1, 1, 3, 1, 0, 0),
}


@pytest.fixture(autouse=True)
def _quiet(request):
    if "warned" in request.node.name:
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Run.select: index names", UserWarning)
        yield


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_ends_where_the_whole_batch_did(name, backend):
    plan, z = plan_of(name, n=4), unit(4, 3, 8)
    whole = finish(fs.Run(plan, noise=z, seed=5, backend=backend))
    for at in (1, 3):
        for index in INDICES.values():
            run = finish(fs.Run(plan, noise=z, seed=5, backend=backend), at=at, index=index)
            picked = torch.tensor(np.asarray(index, np.int64))
            assert same(run.x, whole.x[picked]) and same(run.x0, whole.x0[picked])
            assert run.row == whole.row and torch.equal(run.seeds, whole.seeds[picked])
    twice = fs.Run(plan, noise=z, seed=5, backend=backend)
    twice.step(net(twice.model_input, twice.t))
    twice.select([3, 2, 1])
    assert same(finish(twice, at=3, index=[2, 0]).x, whole.x[[1, 3]])


def own_draws(plan):
    ids = list(dict.fromkeys(plan.ids[plan.ids > 0].tolist()))
    return [unit(4, 3, 8, seed=int(k)) for k in ids]


CASES = {
    "guidance a sample": lambda: (
        guidance.guided(plan_of("dpmpp_2m")),
        {"guidance": torch.tensor([1.0, 2.0, 3.0, 4.0]), "copies": 2},
    ),
    "noise scale a sample": lambda: (
        plan_of("euler_ancestral"),
        {"noise_scale": torch.tensor([0.0, 0.5, 1.0, 2.0])},
    ),
    "seeds given, another stage": lambda: (
        plan_of("dpmpp_2m_sde"),
        {"seed": [9, 2**63, -4, 7], "stage": 3},
    ),
    "inpainting": inpainting,
    "inpainting from seeds": lambda: inpainting(noise=None, shape=(4, 3, 8), seed=3),
    "one mask, one known image": lambda: inpainting(
        mask=torch.rand(1, 1, 8), known=unit(1, 3, 8, seed=2)
    ),
    "draws handed over": lambda: (
        plan_of("dpmpp_2m_sde"),
        {"noise_source": own_draws(plan_of("dpmpp_2m_sde"))},
    ),
    "a window of a whole": lambda: (
        plan_of("euler_ancestral"),
        {"noise_source": fs.window((6, 3, 12), np.s_[1:5, :, 4:]), "seed": 8},
    ),
    "a half-precision model": lambda: (plan_of("unipc"), {"model_dtype": torch.bfloat16}),
    "float64": lambda: (plan_of("unipc"), {"state_dtype": torch.float64}),
    "no preview": lambda: (plan_of("euler_ancestral"), {"preview": False}),
    "from a state": lambda: (
        plan_of("euler_ancestral"),
        {"noise": None, "latent": 3 * unit(4, 3, 8, seed=6), "start": 2, "seed": 1},
    ),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_all_that_is_a_samples_own_moves_with_it(case, backend):
    plan, words = CASES[case]()
    words = {"noise": unit(4, 3, 8), "seed": 5, "backend": backend} | words
    ask = lambda x, t: net(x, t).to(x.dtype)
    whole = finish(fs.Run(plan, **words), ask)
    for index in ([2, 0, 3, 1], [3], [1, 1, 2, 1, 0]):
        run = finish(fs.Run(plan, **words), ask, at=3, index=index)
        assert same(run.x, whole.x[index]) and not run.status().any()


def test_memory_formats_move():
    """channels_last, and the axes of one sample in another order."""
    plan = plan_of("euler_ancestral")
    for z in (
        unit(4, 3, 4, 5).to(memory_format=torch.channels_last),
        unit(4, 5, 3).transpose(1, 2),
    ):
        whole = finish(fs.Run(plan, noise=z, seed=5))
        for index in ([2, 0, 3, 1], [3], [1, 1, 2, 1, 0]):
            run = finish(fs.Run(plan, noise=z, seed=5), at=3, index=index)
            assert same(run.x, whole.x[index]) and run.x.stride()[1:] == whole.x.stride()[1:]


def test_a_callable_draws_for_the_batch_as_it_is():
    asked = []

    def source(row, name):
        asked.append(len(run.x))
        return unit(len(run.x), 8, seed=row)

    run = fs.Run(plan_of("euler_ancestral"), noise=unit(4, 8), noise_source=source)
    finish(run, at=3, index=[2, 2, 2, 0, 1, 3])
    assert asked == [4, 4, 6, 6, 6][: len(asked)] and asked[-1] == 6
    assert len(torch.unique(run.x, dim=0)) == 6  # copies go ways of their own


def test_copies_with_new_seeds_go_ways_of_their_own():
    """Each as a run of its own from the state where it was chosen."""
    plan, z = plan_of("euler_ancestral"), unit(4, 8)
    run = fs.Run(plan, noise=z, seed=5)
    while run.row < 3:
        run.step(net(run.model_input, run.t))
    state = run.x.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.select([1, 1, 0], seeds=[50, 60, 5])
    assert run.seeds.tolist() == [50, 60, 5]
    finish(run)
    for b, (sample, seed) in enumerate(((1, 50), (1, 60), (0, 5))):
        latent = state[sample : sample + 1]
        alone = finish(fs.Run(plan, latent=latent, start=3, seed=seed, stage=0))
        assert same(run.x[b : b + 1], alone.x)
    counted = fs.Run(plan, noise=z, seed=5)
    counted.select([1, 1], seeds=7)
    assert counted.seeds.tolist() == [7, 8]


@pytest.mark.parametrize("given", [True, False], ids=["noise given", "noise of the seeds"])
def test_new_seeds_leave_the_noise_of_the_known_image(given):
    """It is the noise that the sample began with, whatever it draws from then on."""
    plan, words = inpainting()
    plan = plan_of("ddim", model=FLOW, inpaint=True, eta=0.0)
    z = {"noise": unit(4, 3, 8)} if given else {"shape": (4, 3, 8)}
    whole = finish(fs.Run(plan, **z, seed=5, **words))
    run = fs.Run(plan, **z, seed=5, **words)
    finish(run, at=3, index=[2, 2, 1], seeds=[1, 2, 3])
    assert same(run.x, whole.x[[2, 2, 1]])


def test_copies_that_draw_one_noise_are_warned_of_once():
    plan, z = plan_of("euler_ancestral"), unit(4, 8)
    run = fs.Run(plan, noise=z, seed=5)
    with pytest.warns(UserWarning, match="keep its seed.*seeds=") as caught:
        run.select([1, 1, 1, 2, 2])
    assert len(caught) == 1 and caught[0].filename == __file__
    silent = (
        (fs.Run(plan, noise=z, seed=5), [3, 1], None),
        (fs.Run(plan, noise=z, seed=5), [1, 1], 3),
        (fs.Run(plan, noise=z, seed=5, noise_scale=0), [1, 1], None),
        (fs.Run(plan_of("dpmpp_2m"), noise=z), [1, 1], None),
        (finish(fs.Run(plan, noise=z, seed=5)), [1, 1], None),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for run, index, seeds in silent:
            run.select(index, seeds=seeds)


REFUSED = {
    "a mask": ([True, False, True, False], TypeError, "a mask of 4 truth values"),
    "a tensor's mask": (torch.tensor([True, False]), TypeError, "a mask of 2 truth values"),
    "a mask in a list": ([1, True], TypeError, "truth values"),
    "negative": ([0, -1], ValueError, "sample -1 of 4; 0 to 3 are accepted"),
    "too large": (np.array([0, 4]), ValueError, "sample 4 of 4"),
    "fractions": ([0.0, 1.0], TypeError, "whole numbers"),
    "a number": (2, TypeError, "index is 2; whole numbers [n]"),
    "two axes": ([[0, 1]], TypeError, "whole numbers [n]"),
    "ragged": ([[0], [1, 2]], TypeError, "whole numbers [n]"),
    "words": (["a"], TypeError, "whole numbers [n]"),
    "nothing": (None, TypeError, "index is None"),
    "bfloat16": (torch.zeros(2, dtype=torch.bfloat16), TypeError, "whole numbers [n]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_index_is_refused_and_nothing_moves(case):
    index, error, said = REFUSED[case]
    run = fs.Run(plan_of("dpmpp_2m"), noise=unit(4, 8))
    run.step(net(run.model_input, run.t))
    before = run.x.clone()
    with pytest.raises(error) as raised:
        run.select(index)
    text = str(raised.value)
    assert text.startswith("Run.select: index") and said in text and "\n" not in text
    assert torch.equal(run.x, before)


def test_the_advice_about_masks_holds():
    run = fs.Run(plan_of("dpmpp_2m"), noise=unit(4, 8))
    mask, first = torch.tensor([True, False, True, True]), run.x.clone()
    run.select(mask.nonzero().flatten())
    assert same(run.x, first[mask])
    run.select(np.flatnonzero([False, True, True]))
    assert same(run.x, first[[2, 3]])


def test_other_seeds_are_refused_and_nothing_moves():
    run = fs.Run(plan_of("euler_ancestral"), noise=unit(4, 8), seed=1)
    for bad, error in (([1, 2, 3], ValueError), ("x", TypeError), (torch.zeros(2), ValueError)):
        with pytest.raises(error, match="Run.select: seed "):
            run.select([0, 1], seeds=bad)
    ids = own_draws(run.plan)
    given = fs.Run(run.plan, noise=unit(4, 3, 8), noise_source=ids)
    with pytest.raises(ValueError, match="the run draws from noise_source; without seeds="):
        given.select([0, 1], seeds=1)
    assert len(run.x) == len(given.x) == 4 and run.seeds.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("transform", ["vmap", "trace", "jvp"])
def test_a_transform_is_refused(transform):
    run = fs.Run(plan_of("dpmpp_2m"), noise=unit(4, 8))
    pick = lambda v: (run.select([0, 1]), v)[1]
    with pytest.raises(RuntimeError, match=r"Run\.select: called under"):
        {
            "vmap": lambda: torch.vmap(pick)(torch.ones(2)),
            "trace": lambda: torch.jit.trace(pick, torch.ones(2), check_trace=False),
            "jvp": lambda: torch.func.jvp(pick, (torch.ones(2),), (torch.ones(2),)),
        }[transform]()
    assert len(run.x) == 4


def test_a_fault_keeps_its_sample_and_a_run_begins_again():
    plan = plan_of("euler_ancestral")
    bad = lambda x, t: torch.where(torch.arange(len(x)).view(-1, 1) == 2, torch.nan, net(x, t))
    run = fs.Run(plan, noise=unit(4, 8), seed=1)
    run.step(bad(run.model_input, run.t))
    run.select([0, 2])
    finish(run)
    assert run.faults() == [1]
    with pytest.raises(FloatingPointError, match="sample 1 became non-finite at row 1"):
        run.check()
    z = unit(2, 8, seed=4)
    run.restart(z, seed=3)
    assert same(finish(run).x, finish(fs.Run(plan, noise=z, seed=3)).x)
    run.restart(z, seed=8)  # as a plain run, in the memory that there is
    assert same(finish(run).x, finish(fs.Run(plan, noise=z, seed=8)).x)


def test_a_copy_of_a_run_is_not_selected_with_it():
    import copy

    plan, z = plan_of("dpmpp_2m_sde"), unit(4, 8)
    run = fs.Run(plan, noise=z, seed=1)
    run.step(net(run.model_input, run.t))
    twin = copy.deepcopy(run)
    run.select([3])
    whole = finish(fs.Run(plan, noise=z, seed=1)).x
    assert same(finish(twin).x, whole) and same(finish(run).x, whole[3:])


# -- what a callback returns -----------------------------------------------------------------------
def told(x, t, y, words, pages, same, scale):
    """Uses every part of a condition; `same` belongs to no sample, though it is as long."""
    each = torch.tensor([float(w) for w in words]).view(-1, *[1] * (x.dim() - 1))
    row = (y + pages["a"][:, 0]).view(-1, *[1] * (x.dim() - 1))
    return net(x, t) + 0.01 * (row * scale + each) + 0.01 * same.sum()


def conditions(batch, shift=0.0):
    return {
        "y": torch.arange(batch) + shift,
        "words": [str(3 * k) for k in range(batch)],
        "pages": {"a": torch.arange(batch).float().view(-1, 1) ** 2},
        "same": fs.shared(torch.arange(float(batch))),
        "scale": 0.5,
    }


@pytest.mark.parametrize("batched", [True, False], ids=["one call", "a call a branch"])
@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc", "dpmpp_2m_sde"])
def test_a_callbacks_select_moves_conditions_too(name, batched):
    plan = plan_of(name)
    sampler, z = fs.Sampler(plan, told), unit(4, 3, 8)
    words = {"cond": conditions(4), "uncond": conditions(4, 1.0), "seed": 2}
    words |= {"guidance": torch.tensor([1.0, 2.0, 3.0, 4.0]), "batched_guidance": batched}
    whole, states = sampler(noise=z, trajectory=True, **words)
    for chosen in ({1: [2, 0, 3, 1]}, {0: [3]}, {5: [0, 0]}, {1: [3, 1, 0], 3: [2, 2, 0, 1]}):
        picked = torch.arange(4)
        for index in chosen.values():
            picked = picked[index]

        def callback(step, x, x0, chosen=chosen):
            return fs.Select(chosen[step]) if step in chosen else None

        got, path = sampler(noise=z, trajectory=True, callback=callback, **words)
        assert same(got, whole[picked]) and same(path, states[:, picked])
        assert same(sampler(noise=z, callback=callback, **words), whole[picked])
        assert same(sampler(noise=z, **words), whole)  # and idle runs are as they were


def test_a_callbacks_select_takes_a_state_and_seeds():
    plan, z = plan_of("euler_ancestral"), unit(4, 8)
    sampler = fs.Sampler(plan, net)
    at = lambda index, x, seeds=None: (
        lambda step, *_: fs.Select(index, x, seeds) if step == 2 else None
    )
    x = 2 * unit(2, 8, seed=4)
    got = sampler(noise=z, seed=5, callback=at([3, 0], x, [70, 80]))
    alone = sampler(latent=x, start=4, seed=[70, 80], stage=0)
    assert same(got, alone)
    with pytest.raises(ValueError, match=r"Run.x: a .* of \[3, 8\]"):
        sampler(noise=z, seed=5, callback=at([3, 0], unit(3, 8)))
    with pytest.raises(ValueError, match=r"Sampler: Select: index names sample 4 of 4"):
        sampler(noise=z, seed=5, callback=at([4], None))
    out = torch.empty(4, 8)
    with pytest.raises(ValueError, match=r"Sampler: out is .*\[4, 8\] for a result of \[1, 8\]"):
        sampler(noise=z, seed=5, callback=at([1], None), out=out)
    turned = sampler(noise=z, seed=5, callback=at([3, 2, 1, 0], None), out=out)
    assert turned is out and same(out, sampler(noise=z, seed=5).flip(0))


def test_copies_in_a_callback_are_warned_of_where_the_call_is():
    sampler = fs.Sampler(plan_of("euler_ancestral"), net)
    with pytest.warns(UserWarning, match="keep its seed") as caught:
        sampler(
            noise=unit(4, 8), callback=lambda step, *_: fs.Select([1, 1]) if step == 1 else None
        )
    assert [w.filename for w in caught] == [__file__]


def test_k_sample_says_where_samples_are_chosen_among():
    plan = plan_of("dpmpp_2m", n=4)
    with pytest.raises(TypeError, match="k_sample: callback returned a Select.*Run.select"):
        k_sample(
            plan,
            lambda x, sigma: 0.1 * x,
            unit(4, 8) * plan.init_scale,
            callback=lambda told: fs.Select([0]),
            disable=True,
        )
