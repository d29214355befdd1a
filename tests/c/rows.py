"""One step on packed tables and the normals of a seed, in NumPy: the definition once more, beside
the C code and the torch reference.

Products are rounded before sums and terms added in the order written; float32 results must agree
bit for bit.
"""

import numpy as np

f32 = np.float32


def offsets(S, G, L, K, E):
    """(W, {name: first float of it}, WF): csrc/core/row.h, worked out again."""
    W, at, names = 3 + S + G + L, 0, {}
    for name, size in (
        ("M", 3 * W),
        ("p", 1),
        ("q", 1),
        ("clip", 1),
        ("U", G),
        ("V", G * K),
        ("known", 1 + L),
        ("c", 1),
        ("t", E),
        ("preview", 2),
        ("level", 2),
    ):
        names[name] = at
        at += size
    return W, names, at


def total(terms, like):
    """c_1 v_1 + c_2 v_2 + ..., left to right; +0 without a term."""
    out = None
    for c, v in terms:
        out = c * v if out is None else out + c * v
    return np.zeros_like(like) if out is None else out


def bfloat16(x):
    """float32 -> bfloat16 bits, nearest even."""
    bits = np.ascontiguousarray(x, f32).view(np.uint32).astype(np.uint64)
    return np.where(np.isnan(x), 0x7FC0, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(
        np.uint16
    )


def widen(v):
    """Model outputs as numbers: uint16 holds bfloat16."""
    return (v.astype(np.uint32) << 16).view(f32) if v.dtype == np.uint16 else v


def narrow(v, dtype):
    if dtype == np.uint16:
        return bfloat16(v.astype(f32))
    return v.astype(f32).astype(dtype) if dtype == np.float16 else v.astype(dtype)


def one_row(
    dims,
    F,
    words,
    x,
    slots,
    f,
    n,
    *,
    scale=None,
    weights=None,
    bound=None,
    mask=None,
    known=None,
    preview=False,
):
    """A row of one sample. F, words: its record; x [D]; slots: S arrays; f: G arrays or None;
    n(l) -> [D]. Returns (x', {slot: value}, model input unscaled by dtype, t [E], preview or None).
    """
    S, G, L, K, E = dims
    W, at, _ = offsets(*dims)
    T = x.dtype.type
    reads, branches, known_reads = int(words[0]) | int(words[1]) << 24, int(words[2]), int(words[3])
    w = []
    for g in range(G):
        acc = F[at["U"] + g]
        for k in range(K if scale is not None else 0):
            acc = acc + scale[k] * F[at["V"] + g * K + k]
        w.append(acc if weights is None else weights[1 + g])
    w0 = T(1) if weights is None else weights[0]
    fused = total([(w[g], f[g]) for g in range(G) if branches >> g & 1 and f[g] is not None], x)
    m = (w0 * F[at["p"]]) * x
    m = m + F[at["q"]] * fused if branches else m
    high = bound if bound is not None else F[at["clip"]]
    if bound is not None or high > 0:
        m = np.where(m < -high, -high, m)
        m = np.where(m > high, high, m)
        m = m / high if bound is not None else m
    draws = {}
    draw = lambda k: draws[k] if k in draws else draws.setdefault(k, n(k))
    value = lambda k: [x, *slots, m, fused, *f][k] if k < 3 + S + G else draw(k - 3 - S - G)
    out = [
        total([(F[o * W + k], value(k)) for k in range(W) if reads >> k & 1], x) for o in range(3)
    ]
    if mask is not None and known is not None and known_reads:
        parts = [
            (F[at["known"] + k], known if k == 0 else draw(k - 1))
            for k in range(1 + L)
            if known_reads >> k & 1
        ]
        out[0] = out[0] + mask * (total(parts, x) - out[0])
    written = {int(words[4 + o]): out[1 + o] for o in range(2) if words[4 + o] >= 0}
    image = F[at["preview"]] * x + F[at["preview"] + 1] * m if preview else None
    return out[0], written, F[at["c"]] * out[0], F[at["t"] : at["t"] + E], image


# -- normals ---------------------------------------------------------------------------------------
MASK = np.uint64(0xFFFFFFFF)
LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)


def philox(counter, key):
    """Philox4x32-10: counter 4 x uint64 arrays, key 2 x uint64 -> 4 words below 2^32 (in uint64,
    whose products do not wrap).
    """
    c0, c1, c2, c3 = (np.asarray(c, np.uint64) for c in counter)
    k0, k1 = (np.uint64(k) for k in key)
    for _ in range(10):
        p, q = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0 = (q >> np.uint64(32)) ^ c1 ^ k0
        c1 = q & MASK
        c2 = (p >> np.uint64(32)) ^ c3 ^ k1
        c3 = p & MASK
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & MASK, (k1 + np.uint64(0xBB67AE85)) & MASK
    return c0, c1, c2, c3


def log_unit(u):
    bits = u.view(np.int32)
    m = ((bits & 0x7FFFFF) | 0x3F000000).view(f32)
    low = m < f32(0.70710678)
    e = ((bits >> 23) - 126 - low).astype(f32)
    m = np.where(low, m + m, m) - f32(1)
    z, y = m * m, np.full_like(m, f32(LOG[0]))
    for c in LOG[1:]:
        y = y * m + f32(c)
    y = y * m * z + e * f32(-2.12194440e-4)
    return (m + (y - f32(0.5) * z)) + e * f32(0.693359375)


def box_muller(a, b):
    u = np.minimum((a.astype(f32) + f32(0.5)) * f32(2.0**-32), f32(1))
    r = np.sqrt(f32(-2) * log_unit(u))
    turn = (b.astype(np.int64) + (1 << 29)) >> 30
    angle, q = (b.astype(np.int64) - (turn << 30)).astype(f32) * f32(2 * np.pi / 2**32), turn & 3
    z = angle * angle
    s = (
        (f32(-1.9515295891e-4) * z + f32(8.3321608736e-3)) * z + f32(-1.6666654611e-1)
    ) * z * angle + angle
    c = (
        (
            (f32(2.443315711809948e-5) * z + f32(-1.388731625493765e-3)) * z
            + f32(4.166664568298827e-2)
        )
        * z
        * z
        - f32(0.5) * z
        + f32(1)
    )
    sine, cosine = np.where(q & 1, c, s), np.where(q & 1, s, c)
    return r * np.where((q == 1) | (q == 2), -cosine, cosine), r * np.where(q >= 2, -sine, sine)


def normals(seed, noise_id, n, first=0, stage=0):
    """float32 normals of elements first..first+n-1."""
    block = np.arange(first // 4, (first + n + 3) // 4, dtype=np.uint64)
    zero = np.zeros_like(block)
    words = philox(
        (block & MASK, block >> np.uint64(32), zero + np.uint64(noise_id), zero + np.uint64(stage)),
        (seed & 0xFFFFFFFF, seed >> 32),
    )
    return np.stack([*box_muller(*words[:2]), *box_muller(*words[2:])], -1).reshape(-1)[
        first % 4 : first % 4 + n
    ]
