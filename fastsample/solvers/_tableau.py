"""A Tableau as it is given: checked, evaluated, and as a note keeps it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from ..plan.given import integer, real
from ._exponential import phi
from ._tableaux import HAIRER, TABLEAUX, Tableau

SUMS = 1e-12  # how far a sum of numbers near 1 may be from what it must be
TRIED = (-0.3, -2.0)  # z where it is seen whether a constant x0 is integrated exactly
_phi = lru_cache(maxsize=256)(phi)  # tableaux name the same few again and again


def checked(given: str | Tableau | Mapping) -> Tableau:
    """The tableau of a name, or one of the caller's own, in floats; ValueError where it is not
    explicit or not consistent.
    """
    if isinstance(given, str):
        if given not in TABLEAUX:
            _refuse(f"= {given!r:.60}; one of {', '.join(TABLEAUX)}, or a Tableau,")
        given = TABLEAUX[given]
    if isinstance(given, Mapping) and given.keys() <= {*Tableau._fields}:
        given = Tableau(**{"order": None, "nodes": (), "stages": (), "weights": ()} | given)
    if not isinstance(given, Tableau):
        _refuse(f"is a {type(given).__name__}; a name, or a Tableau,")
    order, nodes = integer(given.order), [real(node) for node in _list(given.nodes) or ()]
    if order is None or order < 1:
        _refuse(f": order = {given.order!r:.40}; a whole number from 1 up")
    if not nodes or None in nodes or nodes[0] != 0.0:
        _refuse(f": nodes = {given.nodes!s:.60}; numbers of which the first is 0")
    if not all(0.0 < node <= 1.0 for node in nodes[1:]):
        _refuse(f": nodes = {given.nodes!s:.60}; from the second on numbers above 0 up to 1")
    made = Tableau(
        order,
        nodes,
        [_row(f"stages[{k}]", row, k + 1, given.exponential) for k, row in _each(given.stages)],
        _row("weights", given.weights, len(nodes), given.exponential),
        bool(given.exponential),
        str(given.source or HAIRER),
    )
    if len(made.stages) != len(nodes) - 1:
        _refuse(f": {len(made.stages)} stages beside {len(nodes)} nodes; one less than nodes")
    sums = [sum(coefficient(a, 0.0) for a in row) for row in (*made.stages, made.weights)]
    for k, (found, due) in enumerate(zip(sums, [*made.nodes[1:], 1.0], strict=True)):
        if not abs(found - due) <= SUMS:
            name = "weights" if k == len(made.stages) else f"stages[{k}]"
            _refuse(f": {name} sum to {found:.6g} at z = 0; {due:.6g}, which is consistent,")
    return made


def coefficient(entry: float | Sequence, z: float) -> float:
    """The number of a classical tableau; sum factor·phi_k(at·z) of an exponential one."""
    if isinstance(entry, float):
        return entry
    return math.fsum(factor * _phi(k, at * z) for factor, k, at in entry)


def limit(entry: Sequence) -> float:
    """h·coefficient(entry, -h) as h goes to infinity: phi_k(-at·h) goes as 1/((k - 1)!·at·h)."""
    terms = [
        factor / (at * math.factorial(k - 1)) if k and at > 0.0 else factor * math.inf
        for factor, k, at in entry
        if factor and (k or at <= 0.0)
    ]
    return sum(terms)


def exact_on_constants(tableau: Tableau) -> bool:
    """Is a constant x0 integrated exactly: do rows sum to c·phi_1(c·z) and weights to phi_1(z)?"""
    rows = zip((*tableau.stages, tableau.weights), [*tableau.nodes[1:], 1.0], strict=True)
    return not tableau.exponential or all(
        abs(sum(coefficient(a, z) for a in row) - c * phi(1, c * z)) <= SUMS
        for row, c in rows
        for z in TRIED
    )


def listed(given: object, tableau: Tableau) -> str | dict:
    """What a note keeps of it: its name, or its numbers."""
    return given if isinstance(given, str) else tableau._asdict()


def _refuse(what: str) -> None:
    raise ValueError(f"rk: tableau{'' if what[0] == ':' else ' '}{what} is accepted")


def _list(values: object) -> list | None:
    """A list, a tuple or an array as a list; None for anything else."""
    if isinstance(values, np.ndarray):
        return values.tolist()
    return list(values) if isinstance(values, (list, tuple)) else None


def _each(rows: object) -> enumerate:
    if (found := _list(rows)) is None:
        _refuse(f": stages = {rows!s:.60}; a list of rows")
    return enumerate(found)


def _row(name: str, row: object, length: int, exponential: bool) -> list:
    """A row of so many coefficients: explicit means that stage k reads the k before it."""
    found = _list(row)
    if found is None or len(found) != length:
        _refuse(f": {name} = {row!s:.60}; a list of {length}, as an explicit method has,")
    made = [_terms(entry) if exponential else real(entry) for entry in found]
    if None in made:
        what = "lists of (factor, k, at), k from 0 up" if exponential else "finite numbers"
        _refuse(f": {name} = {row!s:.60}; {what}")
    return made


def _terms(entry: object) -> list | None:
    try:
        found = [(real(factor), integer(k), real(at)) for factor, k, at in entry]
    except (TypeError, ValueError):
        return None
    sound = all(None not in term and term[1] >= 0 for term in found)
    return [list(term) for term in found] if sound else None
