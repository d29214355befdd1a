"""The launch: what a pool may hold beside the samples, tensors looked at before they are taken, and
the same bits and refusals by every road to a backend.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import (
    BACKENDS,
    BASE,
    BRANCHES,
    READS_LO,
    STATES,
    launched,
    lying,
    make,
    pooled,
    results,
    same,
    table_of,
)
from hypothesis import given
from hypothesis import strategies as st

from fastsample.kernels import native, normal
from fastsample.kernels.backend import bound, select

# The binary by torch's exchange table, and by addresses where torch has none.
ROADS = [*BACKENDS, *([] if native.MISSING else ["addresses"])]


@pytest.fixture
def road(request, monkeypatch):
    """pool -> its launch, by the road asked for."""
    if request.param == "addresses":
        monkeypatch.setattr(native, "EXCHANGE", False)
    name = "reference" if request.param == "reference" else "native"
    return lambda pool: bound(select("step", "cpu", pool.x.dtype, name), pool)


def ready(case=BASE, **changes):
    """(arguments, options) of a case whose slots may all be read and whose rows all read m."""
    setup = make(case)
    x, slots, f, numbers, words, row, at = setup.args
    words[:, READS_LO] |= 1 << at.m
    words[:, BRANCHES] = (1 << at.G) - 1
    slots = [torch.nan_to_num(s, 0.25) for s in slots]
    return (x, slots, f, numbers, words, row, at), {**setup.options, **changes}


def held_of(args, options):
    """(pool, outputs [G*B,*]) of a case."""
    x, slots, f, *table, row, at = args
    options = {k: v for k, v in options.items() if k != "noise"}
    held = pooled(x, slots, *table, row, at, **options)
    return held, torch.cat(lying(held, f)[0])


def equal(a, b):
    return all(same(u, v) for u, v in zip(a, b, strict=True))


@pytest.mark.parametrize("road", ROADS, indirect=True)
@pytest.mark.parametrize("state", STATES, ids=str)
@pytest.mark.parametrize("branches", [1, 3])
def test_a_tensor_taken_gives_what_the_launch_gives(road, branches, state):
    args, options = ready(replace(BASE, G=branches, state=state))
    for row in range(7):
        want = launched(*args[:5], row, args[6], **options, backend="reference")
        held, f = held_of(args, options)
        assert road(held).take(row, f)
        assert equal(results(held, row), want)


@pytest.mark.parametrize("road", ROADS, indirect=True)
@pytest.mark.parametrize("reads", [False, True], ids=["x", "x_in"])
@pytest.mark.parametrize("writes", [False, True], ids=["x", "x_out"])
def test_the_state_may_be_read_and_written_elsewhere(road, reads, writes):
    """x itself is left alone where it is not the one; an x_out may be an x_in."""
    args, options = ready()
    want = launched(*args[:5], 4, args[6], **options, backend="reference")
    for own in (True, False) if reads and writes else (True,):
        held, f = held_of(args, options)
        x_in = held.x.clone() if reads else None
        x_out = (held.x * torch.nan if own else x_in) if writes else None
        if reads:
            held.x.fill_(torch.inf)
        before = held.x.clone()
        assert road(held).carry(4, f, x_in, x_out)
        assert same(held.x, before) == writes
        if reads and own:
            assert same(x_in, args[0])
        if writes:
            held.x = x_out
        assert equal(results(held, 4), want)


class Named(torch.Tensor):
    """A tensor of another class."""


REFUSED = {
    "one sample": lambda f: f[:1],
    "a short sample": lambda f: f[:, :1],
    "flat": lambda f: f.flatten(),
    "one axis more": lambda f: f[None],
    "half": lambda f: f.half(),
    "double": lambda f: f.double(),
    "whole numbers": lambda f: f.int(),
    "strided": lambda f: torch.stack([f, f], -1)[..., 0],
    "transposed": lambda f: f.t().contiguous().t(),
    "a list": lambda f: [f],
    "numpy": lambda f: f.numpy(),
    "sparse": lambda f: f.to_sparse(),
    "meta": lambda f: f.to("meta"),
    "a parameter": lambda f: torch.nn.Parameter(f),
    "a subclass": lambda f: f.as_subclass(Named),
}


@pytest.mark.parametrize("road", ROADS, indirect=True)
@pytest.mark.parametrize("what", [*REFUSED, "None"])
def test_what_does_not_fit_is_not_taken_and_nothing_is_done(road, what):
    args, options = ready()
    held, f = held_of(args, options)
    launch, before = road(held), held.copied()
    other = REFUSED.get(what, lambda f: None)
    tries = [lambda: launch.take(4, other(f))]
    if what != "None":
        tries += [
            lambda: launch.carry(4, other(f), None, None),
            lambda: launch.carry(4, f, other(held.x.clone()), None),
            lambda: launch.carry(4, f, None, other(held.x.clone())),
        ]
    for attempt in tries:
        assert attempt() is False
        assert equal(results(held, 4), results(before, 4))
    assert launch.take(4, f), "the right one still is"


@pytest.mark.parametrize("road", ROADS, indirect=True)
def test_whether_it_requires_grad_is_for_the_caller_to_look_at(road):
    args, options = ready()
    held, f = held_of(args, options)
    assert road(held).take(4, f.requires_grad_()) and not held.x.requires_grad


@pytest.mark.parametrize("road", ROADS, indirect=True)
def test_an_axis_of_one_lies_anywhere(road):
    args, options = ready(replace(BASE, batch=1, G=1))
    held, f = held_of(args, options)
    assert road(held).take(4, f.as_strided(f.shape, (5, 1)))


@pytest.mark.parametrize("road", ROADS, indirect=True)
def test_draws_given_once_are_not_kept(road):
    args, options = ready()
    (held, f), (fresh, _) = held_of(args, options), held_of(args, options)
    launch, zero = road(held), torch.zeros_like(held.x)
    launch(3, f.split(3), [zero])
    held.x.copy_(args[0]), held.slots.copy_(fresh.slots)
    launch(3, f.split(3))
    road(fresh)(3, f.split(3))
    assert equal(results(held, 3), results(fresh, 3))
    assert not same(
        held.x,
        launched(*args[:5], 3, args[6], **{**options, "noise": [zero]}, backend="reference").x,
    )


@pytest.mark.parametrize("road", ROADS, indirect=True)
def test_another_table_of_the_layout(road):
    args, options = ready()
    other = args[3] * 0.5
    want = launched(*args[:3], other, *args[4:5], 4, args[6], **options, backend="reference")
    held, f = held_of(args, options)
    launch = road(held)
    held.table = table_of(args[6], other, args[4])
    if hasattr(launch, "use"):
        launch.use(held.table)
    assert launch.take(4, f)
    assert equal(results(held, 4), want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_places(backend):
    """Samples stand at places of a larger pool; what stands at others is left alone."""
    args, options = ready(replace(BASE, batch=3, weights=True, bound=True, noise_scale=True))
    x, slots, f, *table, row, at = args
    want = launched(*args, **options, backend="reference")
    options |= {"copies": 2}
    place = torch.tensor([4, 0, 2], dtype=torch.int32)
    scattered = lambda v: v.new_full((5, v.shape[1]), 7).index_copy_(0, place.long(), v)
    held = pooled(
        scattered(x),
        list(map(scattered, slots)),
        *table,
        row,
        at,
        place=place,
        **{k: v for k, v in options.items() if k != "noise"},
    )
    bound(select("step", "cpu", torch.float32, backend), held)(None, f)
    assert same(held.x[place.long()], want.x) and same(held.slots[:, place.long()], want.slots)
    assert bool((held.x[[1, 3]] == 7).all() and (held.slots[:, [1, 3]] == 7).all())
    assert same(held.model_input[:6], torch.cat([want.model_input] * 2))
    assert same(held.preview[:3], want.x0) and not held.status.any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wrong", [3, -1])
def test_a_bad_place_touches_nothing_but_the_status(backend, wrong):
    args, options = ready()
    place = torch.tensor([0, wrong, 2], dtype=torch.int32)
    got = launched(*args, **options, place=place, backend=backend)
    assert got.status.tolist() == [0, 2 | int(args[5][1]) << 8, 0]
    want = launched(*args, **options, backend=backend)
    assert same(got.x[1], args[0][1]) and equal(
        [v[[0, 2]] for v in got[:5]], [v[[0, 2]] for v in want[:5]]
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_stage_for_each_sample(backend):
    args, options = ready(replace(BASE, L=2, noise_scale=True))
    stage = torch.tensor([0, 1, -1], dtype=torch.int32)  # 2^32 - 1
    got = launched(*args, **options, stage=stage, backend=backend)
    ids = args[4][:, -2:][args[5]]
    draws = [normal(options["seed"], ids[:, k], 37, stage.long() & 0xFFFFFFFF) for k in range(2)]
    want = launched(*args, **{**options, "noise": draws}, backend=backend)
    assert equal(got, want)
    assert not same(got.x, launched(*args, **options, backend=backend).x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_model_input_is_repeated(backend):
    args, options = ready()
    want = launched(*args, **options, backend=backend).model_input
    got = launched(*args, **options, copies=2, backend=backend).model_input
    assert same(got, torch.cat([want, want]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_first_fault_of_a_sample_stays(backend):
    args, options = ready()
    args[3][:, args[6].at("clip")] = 0
    held, f = held_of(args, options)
    launch = bound(select("step", "cpu", torch.float32, backend), held)
    f[0, 3] = torch.nan
    for row in (4, 5):
        assert launch.take(row, f)
        assert held.status.tolist() == [8 | 4 << 8, 0, 0]
    launch(99, f.split(3))
    assert held.status.tolist() == [8 | 4 << 8, 1 | 99 << 8, 1 | 99 << 8]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_status_names_the_row_of_the_first_group_that_is_not_finite(backend):
    args, options = ready(replace(BASE, elements=24, batch=4))
    x, slots, f, numbers, words, _, at = args
    numbers[:, at.at("clip")] = 0
    rows, f = torch.tensor([[4, 2], [2, 4], [3, 3], [5, 1]]), [v.clone() for v in f]
    f[0][:2, [0, 5]] = torch.nan  # groups 0 and 1
    f[0][2, 0] = f[0][3, 23] = torch.inf
    got = launched(
        x, slots, f, numbers, words, rows, at, **{**options, "inner": 3}, backend=backend
    )
    assert got.status.tolist() == [8 | row << 8 for row in (4, 2, 3, 1)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("number", [False, True], ids=["vector", "number"])
def test_a_branch_that_a_row_needs_and_nobody_gives_is_a_fault(backend, number):
    x, slots, f, *rest = (args := ready())[0]
    row = 4 if number else torch.full((3,), 4)
    for there in ([], [f[0]], [None, f[1]]):
        got = launched(x, slots, there, *rest[:2], row, rest[3], **args[1], backend=backend)
        assert got.status.tolist() == [4 | 4 << 8] * 3 and same(got.x, x)


@pytest.mark.parametrize(
    ("rows", "inner", "sentence"),
    [
        (torch.zeros(2), 0, r"Pool: row has shape \[2\] for a launch of 3 samples; \[B\] or"),
        (torch.zeros(3, 2, 2), 3, "Pool: row has shape .* accepted"),
        (torch.zeros(3, 2), 0, r"Pool: 2 groups of 0 numbers do not divide a sample of \[37\]; a"),
        (torch.zeros(3, 2), 3, "Pool: 2 groups of 3 numbers do not divide"),
    ],
)
def test_rows_that_do_not_fit_the_batch_or_the_sample_are_refused(rows, inner, sentence):
    (*args, _, at), options = ready()
    with pytest.raises(ValueError, match=sentence):
        launched(*args, rows, at, **(options | {"inner": inner}), backend=BACKENDS[-1])


@pytest.mark.skipif(native.MISSING is not None, reason="needs the binary")
@pytest.mark.parametrize("exchange", [native.EXCHANGE, False])
def test_tensors_are_told_apart_by_where_and_how_they_lie(exchange, monkeypatch):
    monkeypatch.setattr(native, "EXCHANGE", exchange)
    x = torch.arange(12.0)
    others = [x[1:], x[:11], x.view(3, 4), x.view(4, 3), x.view(4, 3).t(), x[:1].expand(12)]
    others += [x.view(torch.int32), x.clone(), torch.nn.Parameter(x[:10]), x[:0], None]
    tuples = [(x, x), (x,), (x, None, x), *((v, x) for v in others), *((x, v) for v in others)]
    assert len({native.seen(tensors) for tensors in tuples}) == len(tuples)
    assert native.seen((x, None)) == native.seen((x.view(12), None))


@given(
    st.integers(0, 2**16),
    st.integers(1, 5),
    st.sampled_from([(1, 7), (2, 3), (3, 1)]),
    st.integers(1, 3),
    st.integers(0, 2),
    st.sampled_from(STATES),
    st.booleans(),
    st.booleans(),
)
@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_any_batch_of_a_pool_is_the_reference_bit_for_bit(
    backend, seed, batch, parts, G, L, state, mask, poison
):
    """Places, indices and rows, good and bad, in a pool with more places than samples."""
    rng, (groups, inner) = np.random.default_rng(seed), parts
    case = replace(
        BASE,
        batch=batch,
        elements=2 * groups * inner,
        G=G,
        L=L,
        state=state,
        mask=mask,
        noise_scale=True,
    )
    (x, slots, f, numbers, words, _, at), options = ready(case)
    whole = lambda low, high, *shape: torch.from_numpy(rng.integers(low, high, shape))
    P = batch + 2
    wide = lambda v: torch.cat([v, v[:1], v[-1:]])
    f = [torch.cat([v, v[:1]]) for v in f]
    if poison:
        f[0][whole(0, batch, 1), whole(0, x.shape[1], 1)] = torch.nan
    place = torch.from_numpy(rng.permutation(P + 1)[:batch])
    del options["noise"]
    options |= {
        "inner": inner,
        "stage": whole(0, 3, batch).int(),
        "place": place.int(),
        "f_index": whole(-1, batch + 2, G, batch),
    }
    row = whole(0, 8, batch, groups) if groups > 1 else whole(0, 8, batch)
    held = []
    for name in (backend, "reference"):
        held.append(pooled(wide(x), list(map(wide, slots)), numbers, words, row, at, **options))
        bound(select("step", "cpu", state, name), held[-1])(None, f)
    for name in ("x", "slots", "model_input", "preview", "status"):
        assert same(*(getattr(pool, name) for pool in held)), name
