"""fs_moments and the cost matrix in C against NumPy."""

import numpy as np
import pytest
from c import build, interface
from c.interface import CostArgs, Library, StatusError, address

pytestmark = pytest.mark.slow  # builds libfastsample


@pytest.fixture(scope="module")
def lib():
    return Library(next(build.installed()[0].glob("lib*/libfastsample.so")))


def test_moments_are_those_of_the_tree(lib):
    rng = np.random.default_rng(5)
    for size in (0, 1, 1023, 1025, 5000, 70_001):
        a = rng.standard_normal((2, 3, size)).astype(np.float32)
        b = rng.standard_normal((1, 3, size)).astype(np.float32)
        got = [moments(lib, a, b, threads) for threads in (1, 2)]
        alone = [moments(lib, a[:, k : k + 1].copy(), b[:, k : k + 1].copy(), 1) for k in range(3)]
        want = np.array(
            [[[tree_sum(a[p, s].astype(float) * b[0, s])] for p in range(2)] for s in range(3)]
        )
        for dots, most in got:
            assert dots.tobytes() == want.tobytes() and np.array_equal(
                most, abs(a).max(-1, initial=0).T
            )
        assert all(dots[0].tobytes() == want[k].tobytes() for k, (dots, _) in enumerate(alone))


def moments(lib, a, b, threads):
    dots, most = np.empty((a.shape[1], len(a), len(b))), np.empty((a.shape[1], len(a)))
    args = interface.MomentsArgs(
        P=len(a),
        Q=len(b),
        threads=threads,
        batch=a.shape[1],
        elements=a.shape[2],
        dots=address(dots),
        max_abs=address(most),
    )
    for k, part in enumerate(a):
        args.a[k] = address(part)
    for k, part in enumerate(b):
        args.b[k] = address(part)
    lib.fs_moments(args)
    return dots, most


def tree_sum(products):
    chunks = -(-len(products) // 1024)
    lanes = np.pad(products, (0, chunks * 1024 - len(products))).reshape(chunks, 64, 16)
    total = lanes[:, 0]
    for step in range(1, 64):
        total = total + lanes[:, step]
    total = halved(total)
    return (
        halved(np.pad(total, (0, (1 << max(chunks - 1, 0).bit_length()) - chunks)))
        if chunks
        else 0.0
    )


def halved(v):
    while v.shape[-1] > 1:
        v = v[..., : v.shape[-1] // 2] + v[..., v.shape[-1] // 2 :]
    return v[..., 0]


# -- cost matrix -----------------------------------------------------------------------------------
def costs(lib, U, c, X, band, p=2.0, threads=0):
    out = np.empty((X.shape[0], U[0].shape[1], X.shape[1]))
    args = CostArgs(
        dtype=int(X.dtype == np.float64),
        terms=len(U),
        batch=len(X),
        I=U[0].shape[1],
        J=X.shape[1],
        D=X.shape[2],
        c=address(c),
        X=address(X),
        band=address(band),
        p=p,
        out=address(out),
        threads=threads,
    )
    for r, u in enumerate(U):
        args.U[r] = address(u)
    lib.fs_cost_matrix(args)
    return out


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("terms", "I", "J", "D", "p"),
    [
        (1, 3, 5, 7, 2.0),
        (2, 9, 9, 1025, 2.0),
        (3, 10, 21, 515, 2.0),
        (4, 2, 8, 64, 1.0),
        (2, 4, 3, 33, 1.5),
    ],
)
def test_cost_matrix(lib, dtype, terms, I, J, D, p):  # noqa: E741
    rng = np.random.default_rng(D)
    U = [rng.standard_normal((2, I, D)).astype(dtype) for _ in range(terms)]
    X = rng.standard_normal((2, J, D)).astype(dtype)
    c = rng.uniform(-1, 1, (terms, I, J))
    band = np.stack([rng.integers(-1, J, I), rng.integers(0, J + 2, I)], 1).astype(np.int32)
    got = costs(lib, U, c, X, band, p)
    wide = c.astype(dtype).astype(float)
    gap = abs(
        sum(U[r].astype(float)[:, :, None] * wide[r][None, :, :, None] for r in range(terms))
        - X.astype(float)[:, None]
    )
    want = (gap**p).mean(-1)
    inside = (np.arange(J) >= band[:, :1]) & (np.arange(J) < band[:, 1:])
    # A difference carries terms+1 roundings of numbers up to `reach`; a float32 sum of squares runs
    # over at most 64 of them.
    unit, reach = np.finfo(dtype).eps / 2, sum(abs(u).max() for u in U) + abs(X).max()
    slack = (terms + 1) * unit * reach
    bound = ((gap + slack) ** p - np.maximum(gap - slack, 0) ** p).mean(-1) + (
        64 * unit + 2.0**-50
    ) * want
    assert (abs(got - want)[:, inside] <= bound[:, inside]).all() and np.isinf(
        got[:, ~inside]
    ).all()
    assert costs(lib, U, c, X, band, p, threads=2).tobytes() == got.tobytes()


def test_cost_gather(lib):
    rng = np.random.default_rng(0)
    U = [rng.standard_normal((2, 3, 1030)).astype(np.float32) for _ in range(2)]
    c = rng.uniform(-1, 1, (2, 3, 4))
    for star, stride in (
        (np.array([2, -1, 0, 1], np.int32), 0),
        (np.array([[2, -1, 0, 1], [0, 0, -1, 2]], np.int32), 4),
    ):
        out = np.empty((2, 4, 1030), np.float32)
        args = CostArgs(
            terms=2,
            batch=2,
            I=3,
            J=4,
            D=1030,
            c=address(c),
            i_star=address(star),
            i_star_batch_stride=stride,
            out=address(out),
        )
        args.U[0], args.U[1] = address(U[0]), address(U[1])
        lib.fs_cost_gather(args)
        for b in range(2):
            for j, i in enumerate(star if stride == 0 else star[b]):
                want = (
                    np.full(1030, np.nan)
                    if i < 0
                    else U[0][b, i] * np.float32(c[0, i, j]) + U[1][b, i] * np.float32(c[1, i, j])
                )
                assert np.array_equal(out[b, j], want, equal_nan=True)
    with pytest.raises(StatusError, match=r"i_star\[1\] is 3"):
        star = np.array([0, 3, 0, 0], np.int32)
        args.i_star, args.i_star_batch_stride = address(star), 0
        lib.fs_cost_gather(args)
