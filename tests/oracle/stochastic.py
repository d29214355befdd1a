"""The stochastic solvers: what each plan must be (case.py says how)."""

from __future__ import annotations

CASES: list = []
LITERALS: list = []
METHODS: list = []
