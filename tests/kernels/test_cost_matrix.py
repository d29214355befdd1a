"""cost_matrix, its gather and its argmin: against float64 loops, on every backend."""

import math

import pytest
import torch
from cases import MODELS, backends, laid_out, same
from cost_bounds import bound, exact

from fastsample.kernels import argmin_source, cost_gather, cost_matrix, reference

BACKENDS = backends("cost_matrix")
WISHED = [name for name in backends("cost_matrix", wished=True) if name not in BACKENDS]


def problem(R=2, B=2, I=5, J=4, D=37, dtype=torch.float32, seed=0):  # noqa: E741
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    band = torch.tensor([[min(i, J), J - (i % 2)] for i in range(I)], dtype=torch.int32)
    return (
        [normal(B, I, D).to(dtype) for _ in range(R)],
        normal(R, I, J),
        normal(B, J, D).to(dtype),
        band,
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", MODELS, ids=str)
@pytest.mark.parametrize("p", [1.0, 2.0, 2.5])
def test_costs(backend, dtype, p):
    for sizes in ({}, {"R": 1, "D": 1}, {"R": 4, "D": 300, "B": 1}, {"J": 9, "I": 2, "D": 257}):
        U, c, X, band = problem(dtype=dtype, **sizes)
        got, want = cost_matrix(U, c, X, band, p, backend=backend), exact(U, c, X, band, p)
        inside = torch.isfinite(want)
        assert torch.equal(torch.isfinite(got), inside)
        assert bool(((got - want).abs() <= bound(U, c, X, p))[inside].all())


@pytest.mark.parametrize(
    ("backend", "n", "D"),
    [
        *(pytest.param(name, 63, 2048, marks=pytest.mark.alone) for name in BACKENDS),
        *((name, 39, 512) for name in BACKENDS),
        *(pytest.param(name, 39, 512, marks=pytest.mark.interpreted) for name in WISHED),
    ],
)
def test_argmins_match_float64(backend, n, D):
    """Costs that differ by parts in 10^4: each target's source is that of the float64 loop."""
    generator = torch.Generator().manual_seed(3)
    path = torch.randn(1, n + 1, D, generator=generator, dtype=torch.float64).cumsum(
        1
    ) * 0.01 + torch.randn(1, 1, D, generator=generator, dtype=torch.float64)
    U = [path[:, :-1].float()]
    c = 1 + 1e-3 * torch.randn(1, n, n, generator=generator, dtype=torch.float64)
    X, band = path[:, 1:].float(), torch.tensor([[i, n] for i in range(n)], dtype=torch.int32)
    got = argmin_source(cost_matrix(U, c, X, band, backend=backend)[0])
    want = argmin_source(exact(U, c, X, band, 2.0)[0])
    assert torch.equal(got, want)
    assert int((got >= 0).sum()) == n


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", MODELS, ids=str)
def test_gather(backend, dtype):
    U, c, _, _ = problem(dtype=dtype)
    wide = torch.promote_types(dtype, torch.float32)
    for pick in (
        torch.tensor([4, -1, 0, 2], dtype=torch.int32),
        torch.tensor([[4, -1, 0, 2], [1, 1, -1, 3]]),
    ):
        got = cost_gather(U, c, pick, backend=backend)
        rows = pick.expand(2, 4)
        for b in range(2):
            for j in range(4):
                i = int(rows[b, j])
                if i < 0:
                    assert bool(got[b, j].isnan().all())
                else:
                    want = U[0][b, i].to(wide) * c[0, i, j].to(wide) + U[1][b, i].to(wide) * c[
                        1, i, j
                    ].to(wide)
                    assert same(got[b, j], want.to(dtype))


def test_a_source_that_there_is_not_gives_nan_by_the_definition():
    """Which a device does not wait to be told of."""
    U, c, _, _ = problem()
    got = reference.cost_gather(U, c, torch.tensor([5, -2, 0, 4]))
    assert got.isnan().all(-1).tolist() == [[True, True, False, False]] * 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sample_of_a_batch_is_the_sample_alone_in_any_layout(backend):
    U, c, X, band = problem(B=3)
    whole = cost_matrix(U, c, X, band, backend=backend)
    scattered = [laid_out(t.flatten(1), "strided").unflatten(1, t.shape[1:]) for t in (*U, X)]
    assert same(cost_matrix(scattered[:2], c, scattered[2], band, backend=backend), whole)
    for b in range(3):
        one = slice(b, b + 1)
        assert same(cost_matrix([u[one] for u in U], c, X[one], band, backend=backend), whole[one])


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_stays_with_its_sample(backend):
    U, c, X, _ = problem()
    U[0][1, 2, 5] = torch.nan
    C = cost_matrix(U, c, X, backend=backend)
    assert bool(torch.isfinite(C[0]).all())
    assert C[1].isnan().all(1).nonzero().flatten().tolist() == [2]


def test_argmin_takes_the_highest_of_equals_and_none_of_nothing():
    inf = math.inf
    C = torch.tensor([[1.0, inf, 3.0, math.nan], [1.0, inf, 2.0, inf], [4.0, inf, 2.0, math.nan]])
    assert argmin_source(C).tolist() == [1, -1, 2, -1]
    assert argmin_source(torch.stack([C, C.flip(0)])).tolist() == [[1, -1, 2, -1], [2, -1, 1, -1]]
    assert argmin_source(C).dtype == torch.int32


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients(backend):
    U, c, X, band = problem(B=1, I=3, J=3, D=4, dtype=torch.float64)
    given = [t.requires_grad_() for t in (*U, c, X)]
    inside = torch.isfinite(cost_matrix(U, c, X, band)).detach()
    assert torch.autograd.gradcheck(
        lambda u, v, c, X: cost_matrix([u, v], c, X, band, backend=backend)[inside], given
    )
    pick = torch.tensor([0, 2, 1], dtype=torch.int32)
    assert torch.autograd.gradcheck(
        lambda u, v, c: cost_gather([u, v], c, pick, backend=backend), given[:3]
    )


@pytest.mark.parametrize("dtype", MODELS, ids=str)
def test_opcheck(dtype):
    U, c, X, band = problem(B=1, I=3, J=3, D=4, dtype=dtype)
    U, c, X = [u.requires_grad_() for u in U], c.requires_grad_(), X.requires_grad_()
    quick = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(
        torch.ops.fastsample.cost_matrix.default, (U, c, X, band, 2.0, None), test_utils=quick
    )
    torch.library.opcheck(
        torch.ops.fastsample.cost_gather.default,
        (U, c, torch.tensor([0, 2, 1], dtype=torch.int32), None),
        test_utils=quick,
    )


def test_what_does_not_fit_is_refused():
    U, c, X, band = problem()
    for call, sentence in (
        (lambda: cost_matrix([], c, X), "U is"),
        (lambda: cost_matrix([U[0], U[1][:1]], c, X), "U is"),
        (lambda: cost_matrix(U, c[:1], X), "c has shape"),
        (lambda: cost_matrix(U, c, X[:1]), "X is"),
        (lambda: cost_matrix(U, c, X.double()), "X is"),
        (lambda: cost_matrix(U, c, X, band[:2]), "band has shape"),
        (lambda: cost_matrix(U, c, X, p=0.0), "p = 0"),
        (lambda: cost_gather(U, c, torch.tensor([0, 1])), "i_star has shape"),
        (lambda: cost_gather(U, c, torch.tensor([0, 1, 2, 5])), "i_star spans 0..5"),
        (lambda: cost_matrix(U, c.to("meta"), X), "tensors are on cpu, meta; one device"),
        (lambda: cost_matrix(U, c, X, band.to("meta")), "tensors are on cpu, meta; one device"),
        (lambda: cost_gather(U, c, torch.zeros(4, device="meta")), "tensors are on cpu, meta"),
    ):
        with pytest.raises(ValueError, match=f"cost_(matrix|gather): {sentence}"):
            call()
