"""step: the reference against the NumPy interpreter, every backend against the reference, bit for
bit; indices, gradients, refusals.
"""

from dataclasses import replace

import interpreter
import numpy as np
import pytest
import torch
from cases import BASE, CASES, MODELS, STATES, Case, as_plan, make, same
from hypothesis import given
from hypothesis import strategies as st

from fastsample.kernels import native, normal, reference, step
from fastsample.kernels.layout import BRANCHES, DU, DV, KNOWN_READS, READS_HI, READS_LO

NAMES = ("x'", "u", "v", "model_input", "x0", "status")
BACKENDS = ["reference"] + ([] if native.MISSING else ["native"])


def structure_of(setup, row):
    """(reads, branches, known_reads, du, dv, clip > 0) of a row of the table."""
    words, numbers = setup.args[4][row].tolist(), setup.args[3][row]
    reads = words[READS_LO] | words[READS_HI] << 24
    return [
        reads,
        words[BRANCHES],
        words[KNOWN_READS],
        words[DU],
        words[DV],
        int(numbers[setup.at.p + 2] > 0),
    ]


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
        got = reference.step(*setup.args, **setup.options)
        for name, ours, theirs in zip(NAMES[:5], got[:5], in_numpy(setup), strict=True):
            theirs = theirs.to(case.model) if name == "model_input" else theirs
            assert torch.equal(ours.nan_to_num(7), theirs.nan_to_num(7)), f"{name}, seed {seed}"


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.alone
def test_backend_is_the_reference_bit_for_bit(backend, case):
    for seed in range(1 if case.elements > 65536 else 3):
        setup = make(case, seed)
        ours = step(*setup.args, **setup.options, backend=backend)
        theirs = step(*setup.args, **setup.options, backend="reference")
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
    ours = step(*setup.args, **setup.options, backend=backend)
    theirs = step(*setup.args, **setup.options, backend="reference")
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
def test_known_structure_gives_the_same_bits(backend, case):
    setup = make(case)
    x, slots, f, numbers, words, _, at = setup.args
    for row in range(len(numbers)):
        rows = torch.full((case.batch,), row)
        structure = structure_of(setup, row)
        slots = [
            torch.full_like(s, torch.nan)
            if not structure[0] >> (1 + k) & 1
            else torch.nan_to_num(s, 0.5)
            for k, s in enumerate(slots)
        ]
        args = (x, slots, f, numbers, words, rows, at)
        open_, known = (
            step(*args, **setup.options, structure=s, backend=backend) for s in (None, structure)
        )
        for name, a, b, there in zip(
            NAMES,
            open_,
            known,
            (True, structure[3] >= 0, structure[4] >= 0, True, True, True),
            strict=True,
        ):
            assert same(a, b) if there else b.numel() == 0, f"{name} of row {row}"


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
    new = reference.step(*setup.args, **setup.options)[0].double()
    true = reference.step(*args, **{**options, "model_dtype": torch.float64})[0]
    args[0], args[3] = args[0].abs(), numbers.double().abs()
    args[1], args[2] = [s.abs() for s in args[1]], [v.abs() for v in args[2]]
    args[3][:, at.p + 2] = 0  # the bound of m only shrinks it
    noise = [normal(setup.options["seed"], words[row, -1], 127).double().abs()]
    size = reference.step(
        *args,
        **{
            **options,
            "model_dtype": torch.float64,
            "scale": options["scale"].abs(),
            "noise": noise,
        },
    )[0]
    n = (at.K + 1) * 2 + 2 * at.G + 3 + 2 * at.W
    unit = torch.finfo(torch.float32).eps / 2
    assert bool(((new - true).abs() <= n * unit / (1 - n * unit) * size).all())
    assert not torch.equal(new, true)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("model", MODELS, ids=str)
def test_model_input_is_rounded_once(backend, model):
    setup = make(replace(BASE, model=model, elements=127))
    new, _, _, model_input, _, _ = step(*setup.args, **setup.options, backend=backend)
    c = setup.args[3][setup.args[5], setup.at.c].view(-1, 1)
    assert same(model_input, (c * new).to(model))


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
    plain = step(x, slots, f, numbers, words, row, at, **setup.options, backend=backend)
    taken = step(
        x, slots, pooled, numbers, words, row, at, f_index=index, **setup.options, backend=backend
    )
    assert all(same(a, b) for a, b in zip(plain, taken, strict=True))
    index[1] = -1
    words[:, BRANCHES] = 1
    alone = step(x, slots, f, numbers, words, row, at, **setup.options, backend=backend)
    words[:, BRANCHES] = 3
    absent = step(
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
    good = step(
        x, slots, f, numbers, words, row, at, f_index=index, **setup.options, backend=backend
    )
    row = row.clone()
    if "row" in what:
        row[1] = len(numbers) if what == "row" else -1
    else:
        index[1, 1] = 3 if what == "index" else -1
    bad = step(
        x, slots, f, numbers, words, row, at, f_index=index, **setup.options, backend=backend
    )
    assert (bad[5] & 255).tolist() == [0, status, 0]
    assert same(bad[0][1], x[1])
    assert not any(bad[k][1].any() for k in range(1, 5))
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
    mixed = step(
        x, slots, f, numbers, words, rows, at, **{**setup.options, "inner": 3}, backend=backend
    )
    group = (torch.arange(24) // 3) % 2
    for g in range(2):
        whole = step(x, slots, f, numbers, words, rows[:, g], at, **setup.options, backend=backend)
        for name, a, b in zip(NAMES[:5], mixed[:5], whole[:5], strict=True):
            assert same(a[:, group == g], b[:, group == g]), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sample_of_a_batch_is_the_sample_alone_and_always_the_same(backend):
    setup = make(replace(BASE, batch=5, elements=4097, noise_scale=True))
    x, slots, f, numbers, words, row, at = setup.args
    whole, again = (step(*setup.args, **setup.options, backend=backend) for _ in range(2))
    assert all(same(a, b) for a, b in zip(whole, again, strict=True))
    for b in range(5):
        one = slice(b, b + 1)
        options = {
            k: v[one] if isinstance(v, torch.Tensor) else v for k, v in setup.options.items()
        }
        alone = step(
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
        assert all(same(a, w[one]) for a, w in zip(alone, whole, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_poisoned_sample_is_reported_and_harms_no_other(backend, poison):
    setup = make(replace(BASE, batch=4, elements=127))
    x, slots, f, numbers, words, row, at = setup.args
    words[:, READS_LO] |= 1 | 1 << at.m
    words[:, BRANCHES] = 3
    numbers[:, at.p + 2] = 0
    slots = [torch.nan_to_num(s, 0.25) for s in slots]
    clean = step(x, slots, f, numbers, words, row, at, **setup.options, backend=backend)
    f = [v.clone() for v in f]
    f[0][2, 5] = poison
    bad = step(x, slots, f, numbers, words, row, at, **setup.options, backend=backend)
    assert (bad[5] & 255).tolist() == [0, 0, 8, 0]
    assert all(same(a[[0, 1, 3]], b[[0, 1, 3]]) for a, b in zip(clean, bad, strict=True))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({0: torch.zeros(3, 37, dtype=torch.float16)}, "the state is torch.float16"),
        ({1: []}, "slots are"),
        ({2: [torch.zeros(1, 37)] * 2}, "model outputs are"),
        ({2: [torch.zeros(3, 1)] * 2}, "model outputs are"),
        ({3: torch.zeros(7, 5)}, "table_f is"),
        ({4: torch.zeros(7, 3, dtype=torch.int32)}, "table_i is"),
        ({5: torch.zeros(2, dtype=torch.int64)}, "row has shape"),
        ({5: torch.zeros(3, 2, dtype=torch.int64)}, "do not divide"),
    ],
)
def test_what_does_not_fit_is_refused(change, sentence):
    setup = make(BASE)
    args = [change.get(k, v) for k, v in enumerate(setup.args)]
    with pytest.raises(ValueError, match=f"step: .*{sentence}"):
        step(*args, **setup.options)
    with pytest.raises(ValueError, match="step: mask has shape"):
        step(
            *setup.args,
            **{**setup.options, "mask": torch.zeros(2, 37), "known": torch.zeros(3, 37)},
        )
