"""A second opinion on every coefficient: derived with mpmath from the exact solution of the
sampling ODE or SDE, never read off the package."""
