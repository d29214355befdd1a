"""A window of a larger batch draws the whole's noise there, bit for bit, at every door."""

import copy
import pickle

import numpy as np
import pytest
import torch
from cases import BACKENDS, same
from test_graph import captured, cuda  # noqa: F401
from test_run import EDM, finish, net, plan_of, unit
from test_seed import ROADS, one_start, roads  # noqa: F401

import fastsample as fs
from fastsample.runtime.run import Run
from fastsample.runtime.sampler import Sampler

SIZE = (3, 4, 6, 5)
PLAN = plan_of("euler_ancestral", 4, EDM)
s_ = np.s_
WINDOWS = {
    "a rank's rows": s_[:, :, 2:4],
    "a tile": s_[:, :, 3:, 1:4],
    "a channel": s_[:, 1:2],
    "a padded length": s_[..., :3],
    "every second": s_[:, :, ::2, -4:-1],
    "samples": s_[1:],
    "every second sample": s_[::2, ..., 2:],
    "all of it": s_[...],
    "none of it": s_[:, :, 3:3],
}


def whole(plan=PLAN, **call):
    return Sampler(plan, net)(**{"shape": SIZE, "seed": 7} | call)


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("what", WINDOWS)
def test_a_window_of_a_run_is_the_run_of_a_window(roads, road, what):  # noqa: F811
    """net works number by number."""
    part, right = WINDOWS[what], whole()
    words = {"shape": tuple(right[part].shape), "noise_source": fs.window(SIZE, part)}
    assert same(roads[road](PLAN, **words, seed=7), right[part].contiguous())
    assert same(roads[road](PLAN, **words, seed=7, stage=2), whole(stage=2)[part].contiguous())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["dpmpp_2m_sde", "ddim", "lcm", "heun"])
def test_every_draw_is_the_wholes(name, dtype, backend):
    options = {"ddim": {"eta": 1.0}, "heun": {"s_churn": 3.0}}.get(name, {})
    plan, part = plan_of(name, 4, EDM, **options), s_[:, :2, 1:]
    right = whole(plan, noise_scale=0.7)[part]
    words = {"noise_source": fs.window(SIZE, part), "noise_scale": 0.7, "state_dtype": dtype}
    got = finish(Run(plan, shape=right.shape, seed=7, backend=backend, **words)).x
    assert same(got, right.contiguous()) if dtype == torch.float32 else got.dtype == dtype
    assert torch.allclose(got.float(), right, rtol=1e-4, atol=1e-4)


def test_an_image_a_known_image_and_given_noise_are_windowed_too():
    image, mask, part = unit(*SIZE, seed=1), unit(*SIZE, seed=2).sigmoid(), s_[1:, :, :4]
    plan = plan_of("euler_ancestral", 4, EDM, start=1, inpaint=True)
    right = whole(plan, shape=None, latent=image, mask=mask, known=image)[part]
    cut = {"latent": image[part], "mask": mask[part], "known": image[part]}
    source = {"noise_source": fs.window(SIZE, part)}
    assert same(finish(Run(plan, seed=7, **cut, **source)).x, right.contiguous())
    z = unit(*SIZE, seed=3)
    right = whole(shape=None, noise=z)[part]
    assert same(finish(Run(PLAN, noise=z[part], seed=7, **source)).x, right.contiguous())


def test_ranks_that_hold_slices_draw_apart():
    """Correlation 1.000 without a window; over 10^5 numbers, .01 is 3 deviations."""
    plan, size = plan_of("lcm", 4, EDM), (1, 2, 100_000)
    still = lambda x, t: 0.0 * x
    part = lambda k, source: Sampler(plan, still)(
        shape=(1, 1, 100_000), seed=4, trajectory=True, noise_source=source(k)
    )[1]
    r = lambda a, b: float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])
    a, b = (part(k, lambda k: fs.window(size, s_[:, k : k + 1])) for k in range(2))
    assert all(abs(r(x, y)) < 0.01 for x, y in zip(a[:-1], b[:-1], strict=True))
    a, b = (part(k, lambda k: None) for k in range(2))
    assert all(r(x, y) > 0.99 for x, y in zip(a[:-1], b[:-1], strict=True)), "it can be missed"


def test_two_lengths_of_one_padding_agree_where_both_are():
    longest = 4096
    run = lambda n: Sampler(PLAN, net)(
        shape=(1, 3, n), seed=2, noise_source=fs.window((1, 3, longest), s_[..., :n])
    )
    assert same(run(70)[..., :33].contiguous(), run(33))
    alone = Sampler(PLAN, net)(shape=(1, 3, 33), seed=2)
    assert same(run(33)[:, 0], alone[:, 0]), "the first channel lies as it does alone"
    assert not same(run(33), alone)


def test_of_one_sample_is_of_every_sample():
    part = s_[1:3, 2:]
    one, all_ = fs.window(SIZE[1:], part), fs.window(SIZE, s_[:, 1:3, 2:])
    words = {"shape": (3, 2, 4, 5), "seed": [4, 9, -1]}
    ends = [finish(Run(PLAN, **words, noise_source=source)).x for source in (one, all_)]
    assert same(*ends) and same(ends[0], whole(seed=[4, 9, -1])[:, 1:3, 2:].contiguous())


def test_seeds_are_the_wholes_samples():
    words = {"shape": (2, *SIZE[1:]), "noise_source": fs.window(SIZE, s_[1:])}
    run = Run(PLAN, **words, seed=7)
    assert run.seeds.tolist() == [8, 9]
    right = finish(run).x
    assert same(finish(Run(PLAN, **words, seed=[8, 9])).x, right)
    run.restart(latent=unit(2, *SIZE[1:]), start=1, seed=20)
    assert run.seeds.tolist() == [21, 22]


def test_a_run_goes_on_as_any_other():
    """Copied, pickled, begun again and with samples chosen among in mid-run."""
    part = s_[:, :, 2:]
    size, source = (3, 4, 4, 5), fs.window(SIZE, part)
    run = Run(PLAN, shape=size, seed=7, noise_source=source)
    run.step(net(run.model_input, run.t))
    right = whole()[part].contiguous()
    twin, thawed = copy.deepcopy(run), pickle.loads(pickle.dumps(run))
    chosen = copy.deepcopy(run)
    chosen.select([2, 0])
    for one in (run, twin, thawed):
        assert same(finish(one).x, right)
    assert same(finish(chosen).x, right[[2, 0]])
    chosen.restart(latent=unit(2, *size[1:]), start=1, seed=20)
    assert chosen.seeds.tolist() == [22, 20]
    z = unit(*SIZE)
    run.restart(z[part].contiguous(), seed=9)
    assert same(finish(run).x, whole(shape=None, noise=z, seed=9)[part].contiguous())


def test_a_captured_loop_copies_it_over(cuda):  # noqa: F811
    graph = captured(PLAN, net)
    for k in range(3):
        words = {"noise_source": fs.window(SIZE, s_[:, :, k : k + 2]), "shape": (3, 4, 2, 5)}
        assert same(graph(**words, seed=7), whole()[:, :, k : k + 2].contiguous())
    assert (cuda.captures, cuda.replays) == (1, 3)


def test_channels_last_stays():
    part = s_[:, :, 2:]
    x = unit(3, 4, 4, 5).to(memory_format=torch.channels_last)
    run = Run(PLAN, noise=x, seed=7, noise_source=fs.window(SIZE, part))
    plain = Run(PLAN, noise=x.contiguous(), seed=7, noise_source=fs.window(SIZE, part))
    assert same(finish(run).x.contiguous(), finish(plain).x)
    assert run.x.stride() == x.stride()


@pytest.mark.parametrize(
    ("shape", "part", "said"),
    [
        ((2, 3, 4), s_[:, 0], "slices is .* for a whole of .2, 3, 4.; a slice for each of its 3"),
        ((2, 3), s_[:, :, 1:], "slices is .* a slice for each of its 2 axes"),
        ((2, 3), s_[..., ...], "slices is"),
        ((2, 3), None, "slices is None"),
        ((2, 3), s_[:, ::-1], "slices holds slice.*for an axis of 3; .* in steps of 1 or more"),
        ((2, 3), s_[:, 1:7], "slices holds slice.1, 7, None. for an axis of 3"),
        ((2, 3), s_[:, 1.0:], "slices holds"),
        ((2, -3), s_[:], "whole_shape is .2, -3.; sizes"),
        ("23", s_[:], "whole_shape is '23'"),
        (6, s_[:], "whole_shape is 6"),
    ],
)
def test_what_is_no_window_is_refused(shape, part, said):
    with pytest.raises((TypeError, ValueError), match=f"^window: {said}"):
        fs.window(shape, part)


@pytest.mark.parametrize("road", ROADS)
def test_a_window_that_does_not_fit_or_has_no_seed_is_refused(roads, road):  # noqa: F811
    source = fs.window(SIZE, s_[:, :, 2:])
    for words, said in [
        ({"shape": SIZE, "seed": 1}, r"a window of \[3, 4, 4, 5\] of \[3, 4, 6, 5\] for a batch"),
        ({"shape": (3, 4, 20), "seed": 1}, "one of that size is accepted"),
        ({"shape": (3, 4, 4, 5)}, "a window and no seed is given; the whole's is accepted"),
        ({"noise": unit(3, 4, 4, 5)}, "a window and no seed is given"),
    ]:
        with pytest.raises(ValueError, match=said):
            roads[road](PLAN, **words, noise_source=source)
    still = plan_of("dpmpp_2m", 4, EDM)
    words = {"noise": unit(3, 4, 4, 5)}
    assert same(roads[road](still, **words, noise_source=source), roads[road](still, **words))


# -- requests of an Engine -------------------------------------------------------------------------
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["euler_ancestral", "ddim", "lcm", "heun", "euler"])
def test_a_request_that_is_a_window_draws_the_wholes_noise_in_any_company(name, backend):
    """Beside requests of other plans and other rows, whose noise is the kernel's."""
    options = {"ddim": {"eta": 1.0}, "heun": {"s_churn": 3.0}}.get(name, {})
    plan, right = plan_of(name, 4, EDM, **options), {}
    part, sizes = s_[:, :, 2:5], (4, 3, 5)
    for stage in (None, 2):
        right[stage] = whole(plan, stage=stage)[part].contiguous()
    engine = fs.Engine(net, sizes, 9, backend=backend)
    first = engine.submit(PLAN, seed=3)
    engine.tick()
    windows = [fs.window(SIZE, s_[b : b + 1, :, 2:5]) for b in range(3)]
    tickets = {
        stage: [engine.submit(plan, seed=7, stage=stage, noise_source=w) for w in windows]
        for stage in right
    }
    last = engine.submit(PLAN, seed=4)
    engine.run()
    for stage, own in tickets.items():
        assert same(torch.cat([ticket.result() for ticket in own]), right[stage])
    for ticket, seed in ((first, 3), (last, 4)):
        assert same(ticket.result(), whole(shape=(1, *sizes), seed=seed))


def test_a_window_of_a_request_with_a_mask_and_copies_of_it():
    plan, part = plan_of("euler_ancestral", 4, EDM, inpaint=True), s_[:1, :, :2]
    mask = torch.zeros(3, 1, 6, 5)
    mask[..., :2] = 1.0
    words = {"mask": mask, "known": torch.ones(SIZE)}
    right = whole(plan, **words)[part]
    engine = fs.Engine(net, (4, 2, 5), 4)
    words = {name: value[part] for name, value in words.items()}
    engine.submit(plan, seed=7, noise_source=fs.window(SIZE, part), **words)
    engine.tick()
    with pytest.warns(UserWarning, match="names a sample"):
        tickets = engine.select([0, 0])
    engine.run()
    assert all(same(ticket.result(), right.contiguous()) for ticket in tickets)


def test_what_a_request_cannot_have_of_a_window():
    engine = fs.Engine(net, SIZE[1:])
    for words, error, said in (
        ({"noise_source": fs.window(SIZE, s_[:1])}, ValueError, "a window and no seed is given"),
        ({"noise_source": fs.window(SIZE, s_[:]), "seed": 1}, ValueError, "for a batch of"),
        ({"noise_source": lambda row, id_: None, "seed": 1}, TypeError, "by a Run"),
    ):
        with pytest.raises(error, match=rf"Engine.submit: .*{said}"):
            engine.submit(PLAN, **words)
    assert not engine.running
