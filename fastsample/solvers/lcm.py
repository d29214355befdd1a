"""Consistency models: predict x0, noise it to the next level."""

from __future__ import annotations

import math
from itertools import pairwise

from ..plan import Plan
from ..schedules import DiscreteVP
from ._begin import begin, build, number
from ._build import Builder, Lin, M, X
from ._start import solver

# as published models were trained: Luo et al. 2023, and Song et al. 2023
TIMESTEP_SCALING, SIGMA_DATA, SIGMA_MIN = 10.0, 0.5, 0.002


@solver(
    "A",
    diffusers="LCMScheduler, FlowMatchLCMScheduler (boundary=False), "
    "SCMScheduler (boundary=False), ConsistencyDecoderScheduler (boundary=False, prediction='edm')",
    comfyui="lcm",
)
def lcm(
    model,
    grid,
    *,
    prediction=None,
    start=None,
    boundary=None,
    timestep_scaling=TIMESTEP_SCALING,
    sigma_data=SIGMA_DATA,
    inpaint=False,
    clip=0.0,
    compat="exact",
) -> Plan:
    """x' = alpha'·D + sigma'·n,  D = c_skip·x + c_out·x0,  c_skip = sd²/(s² + sd²),
    c_out = s/sqrt(s² + sd²),  s = timestep_scaling·t.

    boundary: True, as above, for DiscreteVP only, where it is the default; False, the default
    elsewhere: D = x0 (the re-noising of DMD and of few-step flow models). sd = sigma_data. One
    evaluation a step, stores nothing; a step to sigma = 0 gives D. For consistency models: with
    others the samples lose detail. With the boundary D is x0 only but for a part in s², so the plan
    leaves the schedule by as much (note: consistent). Luo et al. 2023, arXiv:2310.04378, sec. 4.
    compat changes nothing here.
    """
    b = begin(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    boundary = isinstance(b.schedule, DiscreteVP) if boundary is None else bool(boundary)
    if boundary and not isinstance(b.schedule, DiscreteVP):
        raise ValueError(
            f"lcm: boundary = True on {type(b.schedule).__name__}; False, or a DiscreteVP, is "
            "accepted"
        )
    scaling = number("lcm: timestep_scaling", timestep_scaling)
    spread = number("lcm: sigma_data", sigma_data)
    if boundary and spread == 0.0:
        raise ValueError("lcm: sigma_data = 0; a number > 0 is accepted")
    for i in range(b.n):
        clean = M
        if boundary:
            clean = bounded(scaling * max(float(b.t[i]), 0.0), spread)
        step = b.alpha[i + 1] * clean
        if b.sigma[i + 1] > 0.0:
            step = step + b.sigma[i + 1] * b.noise(i)
        b.row(b.t[i], to=b.t[i + 1], x=step)
    words = {"boundary": boundary, "timestep_scaling": scaling, "sigma_data": spread}
    cite = "Luo, Tan, Huang, Li, Zhao 2023, Latent Consistency Models, sec. 4, arXiv:2310.04378"
    words |= {"compat": compat}
    return build(b, "lcm", words, [1] * b.n, cite, consistent=not boundary)


@solver("A", diffusers="CMStochasticIterativeScheduler")
def cm(
    model,
    grid,
    *,
    prediction=None,
    start=None,
    sigma_min=SIGMA_MIN,
    sigma_data=SIGMA_DATA,
    s_noise=1.0,
    inpaint=False,
    clip=0.0,
    compat="exact",
) -> Plan:
    """x' = alpha'·[D + sqrt(rho'² - sigma_min²) s_noise·n],  D = c_skip·y + c_out·F,
    c_skip = sd²/((rho - sigma_min)² + sd²), c_out = (rho - sigma_min) sd/sqrt(rho² + sd²)

    rho = sigma/alpha, y = x/alpha, sd = sigma_data, and F what a network in EDM's preconditioning
    with that sd says, whatever the model's own prediction is: D is y at rho = sigma_min, and below;
    there no noise is added. D stands at sigma_min, so the plan leaves the schedule by as much
    (note: consistent); sigma_min = 0 is lcm without a boundary. clip bounds x0, that is D with
    sigma_min = 0. For consistency models; one evaluation a step, stores nothing. Song et al. 2023,
    arXiv:2303.01469, Alg. 1 and app. C. s_noise scales the noise. compat changes nothing here.
    """
    low, spread = number("cm: sigma_min", sigma_min), number("cm: sigma_data", sigma_data)
    loud = number("cm: s_noise", s_noise)
    if spread == 0.0:
        raise ValueError("cm: sigma_data = 0; a number > 0 is accepted")
    b = begin(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    rows(b, low, spread, loud)
    words = {"sigma_min": low, "sigma_data": spread, "s_noise": loud, "compat": compat}
    cite = "Song, Dhariwal, Chen, Sutskever 2023, Consistency Models, Alg. 1, arXiv:2303.01469"
    sound = low == 0.0 and loud == 1.0
    return build(b, "cm", words, [1] * b.n, cite, consistent=sound)


def rows(b: Builder, low: float, spread: float, loud: float = 1.0) -> None:
    """The rows of `cm`, low = sigma_min, spread = sigma_data, loud = s_noise."""
    points = [*zip(b.alpha.tolist(), b.sigma.tolist(), strict=True)]
    for i, (at, (alpha, sigma)) in enumerate(pairwise(points)):
        x, most = alpha * kept(*at, low, spread), low * alpha
        if sigma > most:
            x = x + (loud * math.sqrt((sigma - most) * (sigma + most))) * b.noise(i)
        b.row(b.t[i], to=b.t[i + 1], x=x)


def kept(alpha: float, sigma: float, low: float, spread: float) -> Lin:
    """D of `cm` over x and x0 at (alpha, sigma), low = sigma_min: with e = alpha·low and
    s = alpha·sd, of x s² (e/sigma)(3 sigma² - 3 e sigma + e² + s²)
    / (alpha ((sigma - e)² + s²)(sigma² + s²)), of x0 1 - e/sigma.
    """
    e, s = alpha * low, alpha * spread
    if e >= sigma:
        return X / alpha
    of_x = 3.0 * sigma * (sigma - e) + e * e + s * s
    of_x *= s * spread * (e / sigma) / (((sigma - e) ** 2 + s * s) * (sigma * sigma + s * s))
    return of_x * X + (1.0 - e / sigma) * M


def bounded(s: float, spread: float = SIGMA_DATA) -> Lin:
    """D = c_skip·x + c_out·x0 at the scaled time s."""
    return (spread**2 / (s * s + spread**2)) * X + (s / (s * s + spread**2) ** 0.5) * M
