"""The costs of `cost_matrix` in float64, and how far a float32 difference may be from them."""

import torch


def exact(U, c, X, band, p):
    """The definition in float64, one pair at a time; +inf outside the band."""
    C = torch.full((X.shape[0], c.shape[1], X.shape[1]), torch.inf, dtype=torch.float64)
    for i in range(c.shape[1]):
        for j in range(int(band[i, 0]), int(band[i, 1])):
            jump = sum(u[:, i].double() * c[r, i, j] for r, u in enumerate(U))
            C[:, i, j] = (jump - X[:, j].double()).abs().pow(p).mean(-1)
    return C


def bound(U, c, X, p):
    """A float32 difference d of R products is off by at most e = gamma_(R+2) (sum |U c| + |X|), so
    a cost by mean((|d| + e)^p - |d|^p), or by mean(|d|^p - (|d| - e)^p), larger for p < 1.
    """
    n, unit = len(U) + 2, 2**-53 if X.dtype == torch.float64 else 2**-24
    terms = [u.double()[:, :, None] * c[r][None, :, :, None] for r, u in enumerate(U)]
    e = n * unit / (1 - n * unit) * (sum(t.abs() for t in terms) + X.double().abs()[:, None])
    gap = (sum(terms) - X.double()[:, None]).abs()
    # partial sums: blocks of up to 256 products in the difference's own precision, and float64
    # beyond
    sums = (256 + 4) * unit * gap.add(e).pow(p).mean(-1) * (1 + p)
    off = torch.maximum((gap + e) ** p - gap**p, gap**p - (gap - e).clamp(min=0) ** p)
    return off.mean(-1) + sums
