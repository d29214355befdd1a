"""The row of a Plan, interpreted in NumPy: the oracle every kernel and runner is held against.

    f = sum_g w_g f_g,  m = clip(p x + q f),  [x' u v] = M [x, r, m, f, f_1..f_G, n_1..n_L],
    x' += mask (ky y + sum Cy n - x')

Written from the definition, one operand at a time, with no care for speed. `dtype` float64 gives
the exact run, float32 the rounded one in the order of operations the kernels must keep.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def total(terms: Sequence[tuple[np.floating, np.ndarray]], like: np.ndarray) -> np.ndarray:
    """c_1 v_1 + c_2 v_2 + ... from left to right; +0 when there is no term."""
    acc = None
    for c, v in terms:
        acc = c * v if acc is None else acc + c * v
    return np.zeros_like(like) if acc is None else acc


def step(
    plan,
    i: int,
    x: np.ndarray,
    slots: list,
    outputs: Sequence | None,
    noise: Callable,
    *,
    scale: Sequence[float] = (),
    mask=None,
    known=None,
    noise_scale: float | None = None,
    weights=None,
    bound=None,
    dtype=np.float64,
):
    """Row i for one sample. x [D]; slots: S arrays, replaced in place; outputs: G raw outputs
    (None = absent); noise(id) -> [D]. Returns (x', model input of the next row, preview of x0).
    """
    T, S, G = dtype, plan.S, plan.G
    num = lambda value: T(value)  # one rounding to the state's dtype, like the kernels' table
    x = x.astype(T)
    outputs = (
        [None] * G
        if outputs is None
        else [None if f is None else np.asarray(f).astype(T) for f in outputs]
    )
    w0, w = T(1), []
    for g in range(G):
        acc = num(plan.U[i, g])
        for s in range(plan.K):
            acc = acc + T(scale[s] if s < len(scale) else 0) * num(plan.V[i, g, s])
        w.append(acc)
    if weights is not None:
        w0, w = T(weights[0]), [T(v) for v in weights[1:]]
    f = total(
        [
            (w[g], outputs[g])
            for g in range(G)
            if (plan.branches[i] >> g) & 1 and outputs[g] is not None
        ],
        x,
    )
    m = (w0 * num(plan.p[i])) * x
    if plan.branches[i]:
        m = m + num(plan.q[i]) * f
    if bound is not None:
        m = np.clip(m, -T(bound), T(bound)) / T(bound)
    elif plan.clip[i] > 0:
        m = np.clip(m, -num(plan.clip[i]), num(plan.clip[i]))
    draws = {}
    for k in range(plan.L):
        if (
            (plan.reads[i] >> (3 + S + G + k)) & 1
            or (plan.known_reads[i] >> (1 + k)) & 1
            and mask is not None
        ):
            n = np.asarray(noise(int(plan.ids[i, k]))).astype(T)
            draws[k] = n if noise_scale is None else n * T(noise_scale)
    operands = [x, *slots, m, f, *outputs, *(draws.get(k) for k in range(plan.L))]
    out = [
        total(
            [
                (num(plan.M[i, o, k]), operands[k])
                for k in range(plan.W)
                if (plan.reads[i] >> k) & 1
            ],
            x,
        )
        for o in range(3)
    ]
    if mask is not None and known is not None and plan.known_reads[i]:
        terms = [(num(plan.known[i, 0]), known.astype(T))] if plan.known_reads[i] & 1 else []
        terms += [
            (num(plan.known[i, 1 + k]), draws[k])
            for k in range(plan.L)
            if (plan.known_reads[i] >> (1 + k)) & 1
        ]
        out[0] = out[0] + mask.astype(T) * (total(terms, x) - out[0])
    for o, d in enumerate(plan.dst[i]):
        if d >= 0:
            slots[d] = out[1 + o]
    preview = num(plan.preview[i, 0]) * x + num(plan.preview[i, 1]) * m
    return out[0], num(plan.c[i]) * out[0], preview


def run(
    plan,
    x: np.ndarray,
    model: Callable,
    noise: Callable | None = None,
    *,
    first: int = 0,
    dtype=np.float64,
    trace: list | None = None,
    **options,
):
    """The whole plan from row `first`. model(input, t [E], row, call) -> list of G outputs. Slots
    start as NaN: unread, they may hold it. Returns the final x; `trace` collects (x', preview) of
    every row."""
    x, slots = x.astype(dtype), [np.full(x.shape, np.nan, dtype) for _ in range(plan.S)]
    model_input = None if first == 0 else np.asarray(dtype(plan.c[first - 1]) * x)
    for i in range(first, plan.rows):
        outputs = None
        if plan.call[i] >= 0:
            outputs = model(model_input, plan.t[i - 1], i, int(plan.call[i]))
        x, model_input, preview = step(plan, i, x, slots, outputs, noise, dtype=dtype, **options)
        if trace is not None:
            trace.append((x, preview))
    return x
