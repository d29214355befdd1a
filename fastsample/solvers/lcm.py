"""LCM: predict x0, noise it to the next level."""

from __future__ import annotations

from ..plan import Plan
from ..schedules import DiscreteVP
from ._begin import begin, build, number
from ._build import Lin, M, X
from ._start import solver

TIMESTEP_SCALING, SIGMA_DATA = 10.0, 0.5  # Luo et al. 2023, as published models were trained


@solver(
    "A",
    diffusers="LCMScheduler, FlowMatchLCMScheduler (boundary=False), SCMScheduler (boundary=False)",
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


def bounded(s: float, spread: float = SIGMA_DATA) -> Lin:
    """D = c_skip·x + c_out·x0 at the scaled time s."""
    return (spread**2 / (s * s + spread**2)) * X + (s / (s * s + spread**2) ** 0.5) * M
