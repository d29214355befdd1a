"""moments: exact dot products within their bound, one fixed tree on every backend, the same for a
sample wherever it stands.
"""

import math
from fractions import Fraction

import pytest
import torch
from cases import MODELS, SIZES, backends, laid_out, same

from fastsample.kernels import moments

BACKENDS = backends("moments")


def tensors(count, batch, elements, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, elements, generator=generator, dtype=torch.float64).to(dtype)
        for _ in range(count)
    ]


def tree(terms):
    """The tree of the docstring over a list of floats, in Python."""

    def halve(v):
        if len(v) == 1:
            return v[0]
        return halve([a + b for a, b in zip(v[: len(v) // 2], v[len(v) // 2 :], strict=True)])

    chunks = [terms[k : k + 1024] for k in range(0, len(terms), 1024)] or [[]]
    sums = []
    for chunk in chunks:
        lanes = [0.0] * 16
        for e, term in enumerate(chunk):
            lanes[e % 16] += term
        sums.append(halve(lanes))
    return halve(sums + [0.0] * ((1 << (len(sums) - 1).bit_length()) - len(sums)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("elements", [*SIZES, 1024, 5000])
def test_the_tree_is_the_documented_one(backend, elements):
    a, b = tensors(2, 2, elements), tensors(3, 2, elements, seed=1)
    dots, peaks = moments(a, b, backend=backend)
    for s in range(2):
        for p in range(2):
            left = a[p][s].tolist()
            assert float(peaks[s, p]) == max((abs(v) for v in left), default=0.0)
            for q in range(3):
                assert float(dots[s, p, q]) == tree(
                    [u * v for u, v in zip(left, b[q][s].tolist(), strict=True)]
                )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", MODELS, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "strided", "offset", "transposed"])
def test_dots_are_exact_within_their_bound(backend, dtype, layout):
    """float64 sums of n products: |error| <= gamma_d sum |a b|, d = 64 steps + 4 halvings + 3 of
    the chunk sums + 1 product (Higham 2002, 4.2).
    """
    a, b = ([laid_out(t, layout) for t in tensors(2, 3, 4097, dtype, seed)] for seed in (2, 3))
    dots, _ = moments(a, b, backend=backend)
    depth = 64 + math.log2(16) + math.ceil(math.log2(5)) + 1
    bound = depth * 2**-53 / (1 - depth * 2**-53)
    for p in range(2):
        for q in range(2):
            terms = [
                Fraction(u) * Fraction(v)
                for u, v in zip(a[p][1].tolist(), b[q][1].tolist(), strict=True)
            ]
            assert abs(Fraction(float(dots[1, p, q])) - sum(terms)) <= Fraction(bound) * sum(
                abs(t) for t in terms
            )


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("dtype", MODELS, ids=str)
@pytest.mark.alone
def test_backend_is_the_reference_bit_for_bit(backend, dtype):
    for count, batch, elements in ((1, 3, 4097), (5, 2, 127), (2, 0, 8), (2, 3, 0), (1, 1, 200003)):
        a = tensors(count, batch, elements, dtype)
        b = tensors(min(24, 5 * count), batch, elements, dtype, seed=1)
        assert all(
            same(x, y)
            for x, y in zip(
                moments(a, b, backend=backend), moments(a, b, backend="reference"), strict=True
            )
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sum_starts_at_its_first_product(backend):
    """1,024 products of -0 sum to -0; a chunk that zeros fill up, and no product at all, to +0."""
    for elements, sign in ((1024, True), (2048, True), (1000, False), (3072, False), (0, False)):
        dots, _ = moments(
            [torch.full((2, elements), -0.0)], [torch.ones(2, elements)], backend=backend
        )
        assert not dots.any() and dots.signbit().all() == sign == dots.signbit().any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sample_of_a_batch_is_the_sample_alone(backend):
    a, b = tensors(2, 5, 4097), tensors(3, 5, 4097, seed=1)
    whole = moments(a, b, backend=backend)
    for s in range(5):
        alone = moments([t[s : s + 1] for t in a], [t[s : s + 1] for t in b], backend=backend)
        assert all(same(x, y[s : s + 1]) for x, y in zip(alone, whole, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_shows_where_it_is(backend):
    a, b = tensors(2, 3, 127), tensors(1, 3, 127, seed=1)
    a[1][2, 100] = torch.nan
    dots, peaks = moments(a, b, backend=backend)
    assert dots.isnan().nonzero().tolist() == [[2, 1, 0]]
    assert peaks.isnan().nonzero().tolist() == [[2, 1]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients(backend):
    given = [t.requires_grad_() for t in tensors(4, 2, 5, torch.float64)]
    assert torch.autograd.gradcheck(lambda *v: moments(v[:2], v[2:], backend=backend), given)


@pytest.mark.parametrize("dtype", MODELS, ids=str)
def test_opcheck(dtype):
    a, b = ([t.requires_grad_() for t in tensors(2, 2, 5, dtype, seed)] for seed in (0, 1))
    quick = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(
        torch.ops.fastsample.moments.default,
        (a, b, None),
        test_utils=(*quick, "test_aot_dispatch_dynamic") if dtype == torch.float32 else quick,
    )


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([], [torch.zeros(1, 2)]),
        ([torch.zeros(1, 2)] * 6, []),
        ([torch.zeros(1, 2)], [torch.zeros(1, 2)] * 25),
        ([torch.zeros(1, 2)], [torch.zeros(2, 2)]),
        ([torch.zeros(1, 2)], [torch.zeros(1, 1)]),
        ([torch.zeros(1, 2, dtype=torch.int64)], []),
        ([torch.zeros(1, 2)], [torch.zeros(1, 2, device="meta")]),
    ],
)
def test_what_does_not_fit_is_refused(a, b):
    with pytest.raises(ValueError, match="moments: .* accepted"):
        moments(a, b)
