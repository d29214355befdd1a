// Unit normals, specified to the bit: Philox4x32-10 (Salmon et al. 2011) and Box-Muller with fixed
// float32 polynomials (the cephes logf, sinf, cosf). Written as plain loops over a tile of blocks,
// which compilers vectorise.
//
// Element e is lane e%4 of block e/4. Key = (seed low, seed high); counter = (block low, block
// high, id, stream 0). Lanes (0,1) and (2,3) are pairs from words (a, b): u = min((a + .5) 2^-32,
// 1), r = sqrt(-2 log u), first = r cos(2 pi b / 2^32), second = r sin(2 pi b / 2^32). Compile with
// -ffp-contract=off.
#pragma once

#include <cstdint>
#include <cstring>

#include "dtype.h"

namespace fs {
namespace {

constexpr int kTile = 64;  // blocks worked on at once: 256 normals

struct Words {
  alignas(64) uint32_t at[4][kTile];
};

inline void philox_round(uint32_t* c0, uint32_t* c1, uint32_t* c2, uint32_t* c3, uint32_t key0,
                         uint32_t key1) {
  for (int i = 0; i < kTile; ++i) {
    const uint64_t first = uint64_t{0xD2511F53u} * c0[i], second = uint64_t{0xCD9E8D57u} * c2[i];
    c0[i] = static_cast<uint32_t>(second >> 32) ^ c1[i] ^ key0;
    c1[i] = static_cast<uint32_t>(second);
    c2[i] = static_cast<uint32_t>(first >> 32) ^ c3[i] ^ key1;
    c3[i] = static_cast<uint32_t>(first);
  }
}

inline void philox_tile(uint64_t block, uint32_t id, uint64_t seed, Words& words) {
  for (int i = 0; i < kTile; ++i) {
    words.at[0][i] = static_cast<uint32_t>(block + static_cast<uint64_t>(i));
    words.at[1][i] = static_cast<uint32_t>((block + static_cast<uint64_t>(i)) >> 32);
    words.at[2][i] = id;
    words.at[3][i] = 0;
  }
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    philox_round(words.at[0], words.at[1], words.at[2], words.at[3], key0, key1);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

// Natural logarithm of a normal float in (0, 1].
inline float log_unit(float u) {
  const uint32_t bits = bits_of(u);
  const float half = float_of((bits & 0x7FFFFFu) | 0x3F000000u);  // mantissa in [.5, 1)
  const bool low = half < 0.70710678f;
  const int32_t exponent = static_cast<int32_t>(bits >> 23) - 126 - (low ? 1 : 0);
  const float e = static_cast<float>(exponent);
  const float m = (low ? half + half : half) - 1.0f;
  const float z = m * m;
  float y = 7.0376836292e-2f;
  y = y * m + -1.1514610310e-1f;
  y = y * m + 1.1676998740e-1f;
  y = y * m + -1.2420140846e-1f;
  y = y * m + 1.4249322787e-1f;
  y = y * m + -1.6668057665e-1f;
  y = y * m + 2.0000714765e-1f;
  y = y * m + -2.4999993993e-1f;
  y = y * m + 3.3333331174e-1f;
  y = y * m;
  y = y * z;
  y = y + e * -2.12194440e-4f;
  y = y - 0.5f * z;
  return (m + y) + e * 0.693359375f;
}

// Nearest float32 of a word, by two exact halves: the same on machines without an unsigned
// conversion.
inline float float_of_word(uint32_t word) {
  return static_cast<float>(static_cast<int32_t>(word >> 16)) * 65536.0f +
         static_cast<float>(static_cast<int32_t>(word & 0xFFFFu));
}

inline void box_muller(uint32_t a, uint32_t b, float& first, float& second) {
  const float scaled = (float_of_word(a) + 0.5f) * 0x1p-32f;
  const float u = scaled > 1.0f ? 1.0f : scaled;
  const float r = __builtin_sqrtf(-2.0f * log_unit(u));
  // The angle in quarter turns: whole ones in q, the rest in [-pi/4, pi/4], both exact in 32 bits.
  const uint32_t q = (b + (1u << 29)) >> 30;
  const float angle = static_cast<float>(static_cast<int32_t>(b - (q << 30))) *
                      static_cast<float>(6.283185307179586 / 4294967296.0);
  const float z = angle * angle;
  const float s =
      ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z + -1.6666654611e-1f) * z * angle + angle;
  const float c =
      ((2.443315711809948e-5f * z + -1.388731625493765e-3f) * z + 4.166664568298827e-2f) * z * z -
      0.5f * z + 1.0f;
  const float sine = (q & 1u) != 0 ? c : s, cosine = (q & 1u) != 0 ? s : c;
  first = r * float_of(bits_of(cosine) ^ ((q + 1u) << 30 & 0x80000000u));  // negative for q = 1, 2
  second = r * float_of(bits_of(sine) ^ (q << 30 & 0x80000000u));          // negative for q = 2, 3
}

inline void normals_tile(uint64_t block, uint32_t id, uint64_t seed, float* __restrict__ out) {
  Words words;
  alignas(64) float lane[4][kTile];
  philox_tile(block, id, seed, words);
  for (int i = 0; i < kTile; ++i)
    box_muller(words.at[0][i], words.at[1][i], lane[0][i], lane[1][i]);
  for (int i = 0; i < kTile; ++i)
    box_muller(words.at[2][i], words.at[3][i], lane[2][i], lane[3][i]);
  for (int i = 0; i < kTile; ++i) {
    for (int k = 0; k < 4; ++k) out[4 * i + k] = lane[k][i];
  }
}

// out[i] = normal(seed, id, element first + i), 0 <= i < n.
inline void normals(uint64_t seed, uint32_t id, int64_t first, int64_t n, float* out) {
  constexpr int64_t kNormals = 4 * kTile;
  alignas(64) float tile[kNormals];
  while (n > 0) {
    const int64_t lane = first % 4;
    const int64_t take = n < kNormals - lane ? n : kNormals - lane;
    const bool whole = lane == 0 && take == kNormals;
    normals_tile(static_cast<uint64_t>(first / 4), id, seed, whole ? out : tile);
    if (!whole) std::memcpy(out, tile + lane, static_cast<size_t>(take) * sizeof(float));
    first += take, out += take, n -= take;
  }
}

}  // namespace
}  // namespace fs
