"""The tuples that stand for a product."""

from itertools import combinations, product
from math import prod

import pytest
from covering import pairs


@pytest.mark.parametrize(
    "sizes", [(3,), (3, 5), (2, 3, 5), (2, 2, 2, 2, 2), (3, 3, 3, 3), (6, 4, 4, 3, 2)]
)
def test_every_pair_of_values_meets_and_few_tuples_are_needed(sizes):
    axes = [[f"{name}{k}" for k in range(size)] for name, size in zip("abcde", sizes, strict=False)]
    found, whole = pairs(*axes), list(product(*axes))
    assert found == [row for row in whole if row in set(found)]
    for one, other in combinations(range(len(axes)), 2):
        assert {(row[one], row[other]) for row in found} == set(product(axes[one], axes[other]))
    assert len(found) <= 2 * prod(sorted(sizes)[-2:])


def test_where_two_axes_are_long_all_their_pairs_are_enough():
    assert len(pairs(range(105), range(8), range(4))) == 840
