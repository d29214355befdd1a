"""Which tuples of a product a test is to meet, when the whole product says the same many times
over: a fault that two values together bring about is met by any set of tuples in which each pair
of values stands once. `make soak` runs whole products.
"""

from itertools import product


def pairs(*axes):
    """Tuples of the product of the axes, such that each value of an axis meets each value of every
    other one: all pairs of the two longest axes, and then axis by axis (in-parameter-order, Lei and
    Tai 1998) the value that meets most that it has not met. In the order of the product.
    """
    axes = [list(axis) for axis in axes]
    order = sorted(range(len(axes)), key=lambda k: -len(axes[k]))
    rows = [list(row) for row in product(*(range(len(axes[k])) for k in order[:2]))]
    for width in range(2, len(order)):
        size = len(axes[order[width]])
        due = {
            (k, a, b) for k in range(width) for a in range(len(axes[order[k]])) for b in range(size)
        }
        met = lambda row, b, width=width: {(k, a, b) for k, a in enumerate(row[:width])}
        for number, row in enumerate(rows):
            turn = [(number + b) % size for b in range(size)]  # ties go round
            row.append(max(turn, key=lambda b: len(met(row, b) & due)))
            due -= met(row, row[width])
        for k, a, b in sorted(due):
            if (k, a, b) in due:
                row = [(a + b + j) % len(axes[order[j]]) for j in range(width)]
                row[k] = a
                rows.append([*row, b])
                due -= met(row, b)
    places = [order.index(k) for k in range(len(axes))]
    found = sorted({tuple(row[place] for place in places) for row in rows})
    return [tuple(axis[i] for axis, i in zip(axes, row, strict=True)) for row in found]
