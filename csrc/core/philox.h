// Unit normals, specified to the bit: Philox4x32-10 (Salmon et al. 2011) and Box-Muller with fixed
// float32 polynomials (the cephes logf, sinf, cosf). Single blocks are for host and device; the CPU
// works on tiles of blocks in plain loops, which compilers vectorise.
//
// Element e is lane e%4 of block e/4. Key = (seed low, seed high); counter = (block low, block
// high, id, stage). Lanes (0,1) and (2,3) are pairs from words (a, b): u = min((a + .5) 2^-32,
// 1), r = sqrt(-2 log u), first = r cos(2 pi b / 2^32), second = r sin(2 pi b / 2^32). Compile with
// -ffp-contract=off.
#pragma once

#include <cstdint>
#include <cstring>

#include "dtype.h"

namespace fs {
namespace {

// One of the ten rounds, and the key of the next.
FS_HD inline void philox_round(uint32_t& c0, uint32_t& c1, uint32_t& c2, uint32_t& c3,
                               uint32_t key0, uint32_t key1) {
  const uint64_t first = uint64_t{0xD2511F53u} * c0, second = uint64_t{0xCD9E8D57u} * c2;
  c0 = static_cast<uint32_t>(second >> 32) ^ c1 ^ key0;
  c1 = static_cast<uint32_t>(second);
  c2 = static_cast<uint32_t>(first >> 32) ^ c3 ^ key1;
  c3 = static_cast<uint32_t>(first);
}

FS_HD inline void next_key(uint32_t& key0, uint32_t& key1) {
  key0 += 0x9E3779B9u;
  key1 += 0xBB67AE85u;
}

// Natural logarithm of a normal float in (0, 1].
FS_HD inline float log_unit(float u) {
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
FS_HD inline float float_of_word(uint32_t word) {
  return static_cast<float>(static_cast<int32_t>(word >> 16)) * 65536.0f +
         static_cast<float>(static_cast<int32_t>(word & 0xFFFFu));
}

FS_HD inline void box_muller(uint32_t a, uint32_t b, float& first, float& second) {
  const float scaled = (float_of_word(a) + 0.5f) * 0x1p-32f;
  const float u = scaled > 1.0f ? 1.0f : scaled;
  const float r = square_root(-2.0f * log_unit(u));
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

// What tells one noise from another: its seed, its id in the plan, its stage.
struct Draw {
  uint64_t seed;
  uint32_t id, stage;
};

// Noise `id` of sample b of a call.
template <class Args>
FS_HD Draw draw_of(const Args& a, int64_t b, uint32_t id) {
  return {a.seed ? a.seed[b] : static_cast<uint64_t>(b), id, a.stage ? a.stage[b] : 0};
}

// The normals of N blocks, whose numbers are block(0), block(1), ...; in T.
template <int N, class T, class Block>
FS_HD void normals_tile(const Draw& draw, const Block& block, T* __restrict__ out) {
  alignas(64) uint32_t c[4][N];
  alignas(64) float lane[4][N];
  for (int i = 0; i < N; ++i) {
    const uint64_t number = block(i);
    c[0][i] = static_cast<uint32_t>(number);
    c[1][i] = static_cast<uint32_t>(number >> 32);
    c[2][i] = draw.id;
    c[3][i] = draw.stage;
  }
  uint32_t key0 = static_cast<uint32_t>(draw.seed), key1 = static_cast<uint32_t>(draw.seed >> 32);
  for (int round = 0; round < 10; ++round, next_key(key0, key1)) {
    for (int i = 0; i < N; ++i) philox_round(c[0][i], c[1][i], c[2][i], c[3][i], key0, key1);
  }
  for (int i = 0; i < N; ++i) box_muller(c[0][i], c[1][i], lane[0][i], lane[1][i]);
  for (int i = 0; i < N; ++i) box_muller(c[2][i], c[3][i], lane[2][i], lane[3][i]);
  for (int i = 0; i < N; ++i) {
    for (int k = 0; k < 4; ++k) out[4 * i + k] = static_cast<T>(lane[k][i]);
  }
}

// The normal of one element.
FS_HD inline float normal_of(const Draw& draw, uint64_t e) {
  const uint64_t block = e / 4;
  uint32_t c0 = static_cast<uint32_t>(block), c1 = static_cast<uint32_t>(block >> 32), c2 = draw.id,
           c3 = draw.stage;
  uint32_t key0 = static_cast<uint32_t>(draw.seed), key1 = static_cast<uint32_t>(draw.seed >> 32);
  for (int round = 0; round < 10; ++round, next_key(key0, key1))
    philox_round(c0, c1, c2, c3, key0, key1);
  const bool later = (e & 2) != 0;
  float first, second;
  box_muller(later ? c2 : c0, later ? c3 : c1, first, second);
  return (e & 1) != 0 ? second : first;
}

// out[i] = normal of element first + i, 0 <= i < n, at most 4 N of them a turn; returns how many.
template <int N, class T>
int64_t normals_turn(const Draw& draw, int64_t first, int64_t n, T* out) {
  alignas(64) T tile[4 * N];
  const int64_t lane = first % 4, take = n < 4 * N - lane ? n : 4 * N - lane;
  const bool whole = lane == 0 && take == 4 * N;
  const uint64_t block = static_cast<uint64_t>(first / 4);
  normals_tile<N>(
      draw, [=](int i) { return block + static_cast<uint64_t>(i); }, whole ? out : tile);
  if (!whole) std::memcpy(out, tile + lane, static_cast<size_t>(take) * sizeof(T));
  return take;
}

// out[i] = normal of element first + i in T, 0 <= i < n. Tiles of 64 blocks, and of 16 where few
// normals are left.
template <class T>
void normals(const Draw& draw, int64_t first, int64_t n, T* out) {
  while (n > 0) {
    const int64_t done =
        n > 64 ? normals_turn<64>(draw, first, n, out) : normals_turn<16>(draw, first, n, out);
    first += done, out += done, n -= done;
  }
}

// The same for a sample of [C, R] numbers, counted in that order, that lie as [R, C]: out[i] =
// normal of the element that lies at first + i. The normals of a block are neighbours in a channel,
// so that a block is drawn once for all of them that are asked for; few are where n is below 4 C.
template <class T>
void normals_across(const Draw& draw, int64_t C, int64_t R, int64_t first, int64_t n, T* out) {
  constexpr int kBlocks = 64;
  // Block k begins with element start[k]; its lanes low[k]..high[k] go to out[at[k] + lane C].
  int64_t start[kBlocks] = {}, at[kBlocks], low[kBlocks], high[kBlocks];
  int count = 0;
  const auto turn = [&] {
    alignas(64) T tile[4 * kBlocks];
    normals_tile<kBlocks>(draw, [&](int k) { return static_cast<uint64_t>(start[k]) / 4; }, tile);
    for (int k = 0; k < count; ++k) {
      for (int lane = 0; lane < 4; ++lane) {
        if (lane >= low[k] && lane < high[k]) out[at[k] + lane * C] = tile[4 * k + lane];
      }
    }
    count = 0;
  };
  const int64_t end = first + n;
  for (int64_t c = 0; c < C; ++c) {
    const int64_t begin = c * R + first / C + (c < first % C),
                  last = c * R + end / C + (c < end % C);
    for (int64_t e = begin & ~int64_t{3}; e < last; e += 4) {
      start[count] = e, at[count] = (e - c * R) * C + c - first;
      low[count] = begin - e, high[count] = last - e;
      if (++count == kBlocks) turn();
    }
  }
  if (count > 0) turn();
}

}  // namespace
}  // namespace fs
