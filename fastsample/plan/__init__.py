"""The plan: a table of rows, one a model evaluation. `Plan` is the waist of the house."""

from .file import CAPS, PlanError
from .plan import Plan

__all__ = ["CAPS", "Plan", "PlanError"]

Plan.__module__ = __name__  # whatever file it stands in: pickles say so
