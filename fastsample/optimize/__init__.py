"""Searches: each finds time grids (or coefficients) for one model and returns a `Search` holding
Plans; data, never pictures.
"""

from .oss import oss
from .search import Search

__all__ = ["Search", "oss"]
