"""The noise, to the bit: Philox against its published vectors, the normals against committed
numbers, and the same from every form of asking.
"""

import math

import pytest
import torch
from cases import BACKENDS, same
from golden.stages import GOLDEN_STAGES

from fastsample.kernels import normal, select
from fastsample.kernels.reference import noise

# Random123 1.14, kat_vectors, philox4x32 with 10 rounds: counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
# (seed, noise id) -> float32 bits of the first five normals. Never regenerated: a change of these
# is a change of every user's images.
GOLDEN = {
    (0, 0): (0x3F7DBB31, 0xBF6CB6B0, 0xBF1E1B9F, 0xBEF6D1B2, 0xBE1D5353),
    (1, 0): (0x3EC2C3E4, 0xBE97B1BE, 0xBE7F370D, 0xBF807DBD, 0x3F207FA8),
    (7, 3): (0x3F3A9823, 0x3F37C312, 0xBFC58916, 0xBF8F1A93, 0xBF7FBAEE),
    (9223372036854775807, 1): (0xBFF08176, 0x3FDF124E, 0x3F29E06F, 0xBFAB0EB3, 0xBFA3D068),
    (-1, 4294967295): (0xBFC2CD0D, 0xBF9EAE16, 0x3F99899C, 0xBE90761C, 0xBEB28783),
    (123456789012345, 2147483648): (0x3E710D7F, 0x3F29635E, 0xBEAAFEBD, 0xBE85E5DE, 0x3F42134D),
}


def words(values):
    return tuple(torch.tensor([v]) for v in values)


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_philox_gives_the_published_vectors(counter, key, result):
    assert tuple(int(w) for w in noise.philox(words(counter), words(key))) == result


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("seed", "noise_id"), GOLDEN)
def test_normals_are_the_committed_ones(backend, seed, noise_id):
    out = torch.empty(1, 5)
    select("step", "cpu", torch.float32, backend).module.fill(out, torch.tensor([seed]), noise_id)
    assert [v & 0xFFFFFFFF for v in out.view(torch.int32)[0].tolist()] == list(
        GOLDEN[seed, noise_id]
    )


def test_normals_of_a_stage_are_the_committed_ones():
    """A stage for each sample; stage 0 is what a call without one draws."""
    seed, ids, stage = (torch.tensor(v) for v in zip(*GOLDEN_STAGES, strict=True))
    got = normal(seed, ids, 5, stage)
    assert (got.view(torch.int32).long() & 0xFFFFFFFF).tolist() == [
        list(v) for v in GOLDEN_STAGES.values()
    ]
    assert same(normal(seed[:2], ids[:2], 5, 1), got[:2])
    assert same(normal(seed, ids, 5, 0), normal(seed, ids, 5))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("state", [torch.float32, torch.float64])
@pytest.mark.parametrize("elements", [0, 1, 2, 3, 5, 127, 4097])
def test_fill_is_normal(backend, state, elements):
    """A prefix of the longest; a float64 state takes the float32 numbers."""
    seed = torch.tensor([3, -1, 2**40 + 9])
    out = torch.empty(3, elements, dtype=state)
    select("step", "cpu", state, backend).module.fill(out, seed, 2**32 - 2)
    longest = normal(seed, torch.tensor([2**32 - 2] * 3), 4097)
    assert same(out, longest[:, :elements].to(state))


def test_ids_of_elements():
    """An id for each element picks that element from the run of its id."""
    seed, ids = torch.tensor([5, 6]), torch.tensor([[7, 8]]).expand(2, 2).repeat_interleave(31, 1)
    mixed = normal(seed, ids, 62)
    for k in (7, 8):
        whole = normal(seed, torch.tensor([k, k]), 62)
        assert same(mixed[ids == k], whole[ids == k])


def test_seed_and_id_and_stage_all_matter():
    base = normal(torch.tensor([1]), torch.tensor([1]), 64)
    others = [
        normal(torch.tensor([s]), torch.tensor([k]), 64, stage)
        for s, k, stage in ((2, 1, 0), (1 + 2**32, 1, 0), (1, 2, 0), (1, 1, 1))
    ]
    assert not any(bool((base == other).any()) for other in others)


def test_a_block_above_32_bits_counts_in_the_high_word():
    """Element 2^34 of a sample is block 2^32: low word 0, high word 1."""
    key = (torch.tensor([[9]]), torch.tensor([[0]]))
    high = noise._blocks(key, torch.tensor([[4]]), torch.tensor([2**32]))
    direct = noise.philox((*words((0, 1)), *words((4, 0))), words((9, 0)))
    assert same(high[0].flatten(), noise.box_muller(direct[0], direct[1])[0])
    assert not same(high[0], noise._blocks(key, torch.tensor([[4]]), torch.tensor([0]))[0])


def test_log_sin_cos_are_within_two_units_of_the_last_place():
    word = torch.arange(0, 2**32, 1048583)
    angle = word.double() * (2 * math.pi / 2**32)
    s, c = noise.sin_cos(word)
    # of numbers near 1; the polynomials are good to about one rounding of the result
    unit = torch.finfo(torch.float32).eps / 2
    assert (s.double() - angle.sin()).abs().max() <= 2 * unit
    assert (c.double() - angle.cos()).abs().max() <= 2 * unit
    u = (word.float() + 0.5) * 2.0**-32
    u = u[u < 1]
    true = u.double().log()
    assert (
        (noise.log(u).double() - true).abs() <= 2 * unit * true.abs() + 2 * unit * (u > 0.7)
    ).all()


def test_extreme_words_stay_finite():
    """The smallest u is 2^-33 (largest normal 6.8), the largest is 1 (normal 0)."""
    a = torch.tensor([0, 2**32 - 1]).repeat_interleave(4)
    b = torch.tensor([0, 2**30, 2**31, 2**32 - 1]).repeat(2)
    first, second = noise.box_muller(a, b)
    assert bool(torch.isfinite(first).all() and torch.isfinite(second).all())
    assert float(first[0]) == pytest.approx(math.sqrt(66 * math.log(2)), rel=1e-6)
    assert float(first[4].abs()) == 0


def test_moments_of_a_fixed_sample():
    """2^16 numbers of one seed: mean and mean square within 4 standard errors of 0 and 1; no
    element is repeated elsewhere in the sample.
    """
    n = normal(torch.tensor([12]), torch.tensor([1]), 2**16)[0].double()
    error = 2**-8
    assert abs(float(n.mean())) < 4 * error
    assert abs(float((n * n).mean()) - 1) < 4 * error * math.sqrt(2)
    assert abs(float((n[:-1] * n[1:]).mean())) < 4 * error


@pytest.mark.slow
def test_inductor_gives_the_same_bits():
    seed, ids = torch.tensor([1, 2**50, -7]), torch.tensor([0, 3, 2**32 - 1])
    torch._dynamo.reset()
    compiled = torch.compile(lambda s, k: normal(s, k, 129), fullgraph=True)
    assert same(compiled(seed, ids), normal(seed, ids, 129))


def test_log_takes_a_number_apart_as_its_bits_say():
    """frexp against the fields of the float, at every exponent that is no subnormal's."""
    edges = torch.tensor([0x3504F3, 0x3504F4, 0x7FFFFF])  # sqrt 2 from both sides, the last
    mantissas = torch.cat([torch.arange(0, 2**23, 104729), edges])
    bits = torch.arange(1, 255)[:, None] << 23 | mantissas
    mantissa, exponent = torch.frexp(bits.int().view(torch.float32))
    assert same(mantissa, (bits & 0x7FFFFF | 0x3F000000).int().view(torch.float32))
    assert torch.equal(exponent, ((bits >> 23) - 126).int())
