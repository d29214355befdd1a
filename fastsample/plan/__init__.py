"""The plan: a table of rows, one a model evaluation. `Plan` is the waist of the house."""

from .plan import Plan
from .row import CAPS, PlanError

__all__ = ["CAPS", "Plan", "PlanError"]

Plan.__module__ = PlanError.__module__ = __name__  # whatever file they stand in: pickles say so
