"""step: the reference against the NumPy interpreter, every backend against the reference, bit for
bit; indices, groups, poisoned samples.
"""

from dataclasses import replace

import interpreter
import numpy as np
import pytest
import torch
from cases import (
    BACKENDS,
    BASE,
    BRANCHES,
    CASES,
    MODELS,
    NAMES,
    READS_LO,
    STATES,
    Case,
    as_plan,
    launched,
    make,
    same,
    shape_of,
)
from hypothesis import given
from hypothesis import strategies as st

import fastsample as fs
from fastsample.kernels import normal


def in_numpy(setup):
    """The batch by the interpreter, sample by sample, in the order and precision of the kernels."""
    x, slots, f, numbers, words, row, at = setup.args
    plan, option = as_plan(at, numbers.numpy(), words.numpy()), setup.options
    dtype = x.numpy().dtype.type
    pick = lambda name, b: None if option[name] is None else option[name][b].numpy()
    results = []
    for b in range(x.shape[0]):
        held = [s[b].numpy() for s in slots]
        noise = lambda k, b=b: normal(option["seed"][b : b + 1], torch.tensor([k]), x.shape[1])[
            0
        ].numpy()
        new, model_input, preview = interpreter.step(
            plan,
            int(row[b]),
            x[b].numpy(),
            held,
            [v[b].to(x.dtype).numpy() for v in f],
            noise,
            scale=() if option["scale"] is None else pick("scale", b),
            mask=pick("mask", b),
            known=pick("known", b),
            noise_scale=pick("noise_scale", b),
            weights=pick("weights", b),
            bound=pick("bound", b),
            dtype=dtype,
        )
        u, v = (held[d] if d >= 0 else np.zeros_like(new) for d in plan.dst[int(row[b])])
        results.append(
            [torch.from_numpy(np.asarray(value)) for value in (new, u, v, model_input, preview)]
        )
    return [torch.stack(column) for column in zip(*results, strict=True)]


@pytest.mark.parametrize(
    "case",
    [c for c in CASES if c.groups == 1 and c.batch and not c.given_noise and c.elements < 65536],
    ids=str,
)
def test_reference_is_the_interpreter(case):
    for seed in range(3):
        setup = make(case, seed)
        got = launched(*setup.args, **setup.options, backend="reference")
        for name, ours, theirs in zip(NAMES[:5], got[:5], in_numpy(setup), strict=True):
            theirs = theirs.to(case.model) if name == "model_input" else theirs
            assert torch.equal(ours.nan_to_num(7), theirs.nan_to_num(7)), f"{name}, seed {seed}"


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.alone
def test_backend_is_the_reference_bit_for_bit(backend, case):
    for seed in range(1 if case.elements > 65536 else 3):
        setup = make(case, seed)
        ours = launched(*setup.args, **setup.options, backend=backend)
        theirs = launched(*setup.args, **setup.options, backend="reference")
        for name, a, b in zip(NAMES, ours, theirs, strict=True):
            assert same(a, b), f"{name}, seed {seed}"


@given(
    st.integers(0, 2**16),
    st.integers(1, 70),
    st.integers(1, 4),
    st.integers(0, 5),
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(0, 2),
    st.sampled_from(STATES),
    st.sampled_from(MODELS),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_backend_is_the_reference_on_any_case(
    backend, seed, elements, batch, S, G, L, K, state, model, mask, weights, bound
):
    case = Case(
        elements,
        batch,
        S,
        G,
        L,
        K,
        state=state,
        model=model,
        mask=mask,
        weights=weights,
        bound=bound,
    )
    setup = make(case, seed)
    ours = launched(*setup.args, **setup.options, backend=backend)
    theirs = launched(*setup.args, **setup.options, backend="reference")
    assert all(same(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    "case",
    [
        BASE,
        replace(BASE, mask=True),
        replace(BASE, S=0),
        replace(BASE, L=3, G=4),
        replace(BASE, bound=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_number_gives_the_bits_of_a_row_vector(backend, case):
    setup = make(case)
    x, slots, f, numbers, words, _, at = setup.args
    for row in range(len(numbers)):
        shape = shape_of(at, numbers[row], words[row])
        slots = [
            torch.nan_to_num(slot, 0.5) if s in shape.slots_read(at) else slot * torch.nan
            for s, slot in enumerate(slots)
        ]
        vector, number = (
            launched(x, slots, f, numbers, words, r, at, **setup.options, backend=backend)
            for r in (torch.full((case.batch,), row), row)
        )
        for name, a, b in zip(NAMES, vector, number, strict=True):
            assert same(a, b), f"{name} of row {row}"


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_float32_stays_within_its_rounding_bound(model):
    """|float32 - exact| <= gamma_n sum |terms|, n the longest chain of roundings: w (K+1), f (2G),
    m (3), the sum (2W), blend none (Higham 2002, 3.1).
    """
    setup = make(replace(BASE, model=model, elements=127))
    exact = make(replace(BASE, model=model, elements=127))
    wide = lambda v: [t.double() for t in v] if isinstance(v, list) else v.double()
    options = {
        k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in exact.options.items()
    }
    x, slots, f, numbers, words, row, at = exact.args
    args = [wide(x), wide(slots), wide(f), numbers.double(), words, row, at]
    new = launched(*setup.args, **setup.options, backend="reference").x.double()
    wider = {**options, "model_dtype": torch.float64, "backend": "reference"}
    true = launched(*args, **wider).x
    args[0], args[3] = args[0].abs(), numbers.double().abs()
    args[1], args[2] = [s.abs() for s in args[1]], [v.abs() for v in args[2]]
    args[3][:, at.at("clip")] = 0  # the bound of m only shrinks it
    noise = [normal(setup.options["seed"], words[row, -1], 127).double().abs()]
    size = launched(*args, **{**wider, "scale": options["scale"].abs(), "noise": noise}).x
    n = (at.K + 1) * 2 + 2 * at.G + 3 + 2 * at.W
    unit = torch.finfo(torch.float32).eps / 2
    assert bool(((new - true).abs() <= n * unit / (1 - n * unit) * size).all())
    assert not torch.equal(new, true)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("model", MODELS, ids=str)
def test_model_input_is_rounded_once(backend, model):
    setup = make(replace(BASE, model=model, elements=127))
    got = launched(*setup.args, **setup.options, backend=backend)
    c = setup.args[3][setup.args[5], setup.at.at("c")].view(-1, 1)
    assert same(got.model_input, (c * got.x).to(model))


@pytest.mark.parametrize("backend", BACKENDS)
def test_output_indices(backend):
    """Outputs of a shared batch, taken by index; an absent branch is left out of f; an unread one
    may be anything.
    """
    setup = make(replace(BASE, batch=4))
    x, slots, f, numbers, words, row, at = setup.args
    words[:, READS_LO] |= 1 << at.m
    words[:, READS_LO] &= ~(3 << (at.m + 2))  # no raw output is read
    words[:, BRANCHES] = 3
    pooled = [torch.cat([torch.full_like(v[:1], torch.nan), v.flip(0)]) for v in f]
    index = torch.tensor([[4, 3, 2, 1], [4, 3, 2, 1]])
    plain = launched(x, slots, f, numbers, words, row, at, **setup.options, backend=backend)
    taken = launched(
        x, slots, pooled, numbers, words, row, at, f_index=index, **setup.options, backend=backend
    )
    assert all(same(a, b) for a, b in zip(plain, taken, strict=True))
    index[1] = -1
    words[:, BRANCHES] = 1
    alone = launched(x, slots, f, numbers, words, row, at, **setup.options, backend=backend)
    words[:, BRANCHES] = 3
    absent = launched(
        x, slots, pooled, numbers, words, row, at, f_index=index, **setup.options, backend=backend
    )
    assert all(same(a, b) for a, b in zip(alone, absent, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("what", "status"), [("row", 1), ("low row", 1), ("index", 4), ("operand", 4)]
)
def test_a_bad_index_touches_nothing_but_the_status(backend, what, status):
    setup = make(replace(BASE, batch=3))
    x, slots, f, numbers, words, row, at = setup.args
    slots = [torch.nan_to_num(s, 0.25) for s in slots]
    words[:, BRANCHES] = 3
    words[:, READS_LO] |= 1 << at.m
    words[:, READS_LO] |= 1 << (at.m + 3)
    index = torch.arange(3).expand(2, 3).clone()
    good = launched(
        x, slots, f, numbers, words, row, at, f_index=index, **setup.options, backend=backend
    )
    row = row.clone()
    if "row" in what:
        row[1] = len(numbers) if what == "row" else -1
    else:
        index[1, 1] = 3 if what == "index" else -1
    bad = launched(
        x, slots, f, numbers, words, row, at, f_index=index, **setup.options, backend=backend
    )
    assert (bad.status & 255).tolist() == [0, status, 0]
    assert int(bad.status[1]) >> 8 & 0xFFFFFF == int(row[1]) & 0xFFFFFF
    assert same(bad.x[1], x[1])
    assert all(same(a[1], s[1]) for a, s in zip(bad.slots, slots, strict=True))
    assert bool(bad.model_input[1].isnan().all() and bad.x0[1].isnan().all())
    for a, b in zip(good[:5], bad[:5], strict=True):
        assert same(a[[0, 2]], b[[0, 2]])


@pytest.mark.parametrize("backend", BACKENDS)
def test_groups_are_rows_of_their_own(backend):
    """A sample whose elements follow two rows equals, element by element, the sample run under each
    row.
    """
    setup = make(replace(BASE, elements=24, batch=2, L=1))
    x, slots, f, numbers, words, _, at = setup.args
    slots = [torch.nan_to_num(s, 0.25) for s in slots]
    rows = torch.tensor([[0, 4], [5, 2]])
    mixed = launched(
        x, slots, f, numbers, words, rows, at, **{**setup.options, "inner": 3}, backend=backend
    )
    group = (torch.arange(24) // 3) % 2
    for g in range(2):
        whole = launched(
            x, slots, f, numbers, words, rows[:, g], at, **setup.options, backend=backend
        )
        for name, a, b in zip(NAMES[:5], mixed[:5], whole[:5], strict=True):
            assert same(a[:, group == g], b[:, group == g]), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sample_of_a_batch_is_the_sample_alone_and_always_the_same(backend):
    setup = make(replace(BASE, batch=5, elements=4097, noise_scale=True))
    x, slots, f, numbers, words, row, at = setup.args
    whole, again = (launched(*setup.args, **setup.options, backend=backend) for _ in range(2))
    assert all(same(a, b) for a, b in zip(whole, again, strict=True))
    for b in range(5):
        one = slice(b, b + 1)
        options = {
            k: v[one] if isinstance(v, torch.Tensor) else v for k, v in setup.options.items()
        }
        alone = launched(
            x[one],
            [s[one] for s in slots],
            [v[one] for v in f],
            numbers,
            words,
            row[one],
            at,
            **options,
            backend=backend,
        )
        assert all(same(a, w[one]) for a, w in zip(alone[:6], whole[:6], strict=True))
        assert same(alone.slots, whole.slots[:, one])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_poisoned_sample_is_reported_and_harms_no_other(backend, poison):
    setup = make(replace(BASE, batch=4, elements=127))
    x, slots, f, numbers, words, row, at = setup.args
    words[:, READS_LO] |= 1 | 1 << at.m
    words[:, BRANCHES] = 3
    numbers[:, at.at("clip")] = 0
    slots = [torch.nan_to_num(s, 0.25) for s in slots]
    clean = launched(x, slots, f, numbers, words, row, at, **setup.options, backend=backend)
    f = [v.clone() for v in f]
    f[0][2, 5] = poison
    bad = launched(x, slots, f, numbers, words, row, at, **setup.options, backend=backend)
    assert (bad.status & 255).tolist() == [0, 0, 8, 0]
    assert int(bad.status[2]) >> 8 == int(row[2])
    assert all(same(a[[0, 1, 3]], b[[0, 1, 3]]) for a, b in zip(clean[:6], bad[:6], strict=True))
    assert same(clean.slots[:, [0, 1, 3]], bad.slots[:, [0, 1, 3]])


@pytest.mark.parametrize("preview", [False, True])
@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_rows_that_read_all_that_a_run_said_are_the_reference_bit_for_bit(backend, preview):
    """A fitted plan's, of none to twelve slots, the last of which writes none."""
    draw, schedule = np.random.default_rng(3), fs.schedules.Flow()
    weights = [draw.standard_normal(k + 2) / (k + 2) for k in range(13)]
    grid = fs.grids.uniform(schedule, 13)
    plan = fs.solvers.fitted(schedule, grid, weights=weights, prediction="flow")
    noise = torch.from_numpy(draw.standard_normal((2, 1037))).float()
    ours, theirs = (
        fs.Run(plan, noise=noise, preview=preview, backend=name) for name in (backend, "reference")
    )
    while not ours.done:
        f = torch.from_numpy(draw.standard_normal((2, 1037))).float()
        for run in (ours, theirs):
            run.step(f)
        assert torch.equal(ours.x, theirs.x)
        assert not preview or torch.equal(ours.x0, theirs.x0)
    assert plan.S == 12
