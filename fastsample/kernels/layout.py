"""Where each number of a row lies in the two tables a kernel reads.

float record [WF], state dtype: M (3 x W: rows x', u, v) | p | q | clip | U[G] | V[G*K] | ky, Cy[L]
| c | t[E] | dx, dm | alpha, sigma int record [WI], int32: reads_lo, reads_hi (24 bits each) |
branches | known_reads | du | dv | call | ids[L]
Operand columns: x, r_1..r_S, m, f, f_1..f_G, n_1..n_L; W = 3 + S + G + L.
"""

from __future__ import annotations

from typing import NamedTuple

READS_LO, READS_HI, BRANCHES, KNOWN_READS, DU, DV, CALL, IDS = range(8)


class Layout(NamedTuple):
    """Dims of a table: S slots, G branches, L noises, K guidance scales, E model scalars;
    properties are offsets into the float record.
    """

    S: int
    G: int
    L: int
    K: int
    E: int

    @property
    def W(self) -> int:
        return 3 + self.S + self.G + self.L

    @property
    def m(self) -> int:  # operand column of the prediction; f is m + 1, f_g is m + 2 + g
        return 1 + self.S

    @property
    def n(self) -> int:  # operand column of the first noise
        return 3 + self.S + self.G

    @property
    def p(self) -> int:  # q is p + 1, clip is p + 2
        return 3 * self.W

    @property
    def U(self) -> int:
        return self.p + 3

    @property
    def V(self) -> int:
        return self.U + self.G

    @property
    def known(self) -> int:  # ky, then Cy of each noise
        return self.V + self.G * self.K

    @property
    def c(self) -> int:  # t starts at c + 1
        return self.known + 1 + self.L

    @property
    def preview(self) -> int:  # dx, then dm
        return self.c + 1 + self.E

    @property
    def point(self) -> int:  # alpha, then sigma
        return self.preview + 2

    @property
    def WF(self) -> int:
        return self.point + 2

    @property
    def WI(self) -> int:
        return IDS + self.L
