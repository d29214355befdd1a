"""Golden normals of stages: (seed, noise id, stage) -> the first five, as float32 words.

From scalar Philox and Box-Muller in exact rational arithmetic, rounded to float32 after each
operation; it also gives the golden numbers of stage 0 (kernels/test_noise.py). Never regenerated.
"""

GOLDEN_STAGES = {
    (0, 0, 1): (0x3FD359CB, 0x3F587C3B, 0xBDD11910, 0xBDECD29A, 0xBE33312A),
    (7, 3, 1): (0xBEA03D8A, 0x3D76053C, 0xBF03398B, 0x3F8B55C6, 0x3F20A262),
    (0, 0, 4294967295): (0x3F29B19C, 0xBDC1669F, 0xBF538A79, 0x40184C87, 0x3EFD36B2),
    (-1, 4294967295, 4294967295): (0xBFCAC635, 0x3F17BE11, 0x3E93EB5E, 0x3FA05848, 0xBEFCB0F2),
    (123456789012345, 2**31, 2**31): (0x3D52E6EA, 0x3E874141, 0xBF261689, 0xBE8C97C8, 0x3E1CD960),
}
