// Which synapses are replaced, and writing by masks.

#include "common.h"

// A hash of a place, as bouton.tensors.draws.bits defines it.
static inline int32_t mixed(int32_t x, int shift, uint32_t factor) {
  return (int32_t)((uint32_t)(x ^ (x >> shift)) * factor);
}

static inline int32_t bits_at(uint32_t place, uint32_t first, uint32_t second) {
  int32_t x = mixed((int32_t)(place ^ first), 16, 0x7FEB352Du);
  x = mixed((int32_t)((uint32_t)x ^ second), 15, 0x846CA68Bu);
  return mixed(x, 16, 0x9E3779B1u);
}

// erfc(x) for x from 0 to 4, to 1e-6 of it (Press et al., Numerical Recipes in C, 2nd ed., section 6.2).
static inline float tail(float x) {
  float t = 1.0f / (1.0f + 0.5f * x), sum = 0.17087277f;
  sum = multiply_add(sum, t, -0.82215223f);
  sum = multiply_add(sum, t, 1.48851587f);
  sum = multiply_add(sum, t, -1.13520398f);
  sum = multiply_add(sum, t, 0.27886807f);
  sum = multiply_add(sum, t, -0.18628806f);
  sum = multiply_add(sum, t, 0.09678418f);
  sum = multiply_add(sum, t, 0.37409196f);
  sum = multiply_add(sum, t, 1.00002368f);
  sum = multiply_add(sum, t, -1.26551223f);
  return t * power_of_2((sum - x * x) * 1.44269504f);
}

// Replaced is where a draw u from (0, 1] is not above p = erfc(sharpness |w| / largest), and by bound * (2 u / p
// - 1). No draw is as small as erfc(4), so that nothing is replaced from there on, nor what is not a number.
void remodel(const float *weight, count_t count, const float *largest, float sharpness, const float *bound,
             count_t start, uint32_t first, uint32_t second, uint8_t *changed, float *values, int threads) {
  float steepness = sharpness / *largest, widest = *bound;
  THREADS(count)
  for (count_t begin = 0; begin < count; begin += BLOCK) {
    count_t end = least(begin + BLOCK, count);
    SIMD
    for (count_t i = begin; i < end; i++) {
      int32_t bits = bits_at((uint32_t)(start + i), first, second) >> 8; // 24 of them
      float drawn = (float)bits * 0x1p-24f + (0.5f + 0x1p-24f), x = fabsf(weight[i]) * steepness;
      int near = x < 4.0f;
      float chance = tail(near ? x : 4.0f);
      changed[i] = near & (drawn <= chance);
      values[i] = (drawn / chance * 2.0f - 1.0f) * widest;
    }
  }
}

// Writing by masks: what is not chosen keeps its bits.

void put_where(const uint8_t *mask, const uint32_t *values, uint32_t *out, count_t count, int threads) {
  THREADS(count)
  for (count_t begin = 0; begin < count; begin += BLOCK) {
    count_t end = least(begin + BLOCK, count);
    SIMD
    for (count_t i = begin; i < end; i++) out[i] = mask[i] ? values[i] : out[i];
  }
}

void clear_where(const uint8_t *mask, uint32_t *out, count_t count, int threads) {
  THREADS(count)
  for (count_t begin = 0; begin < count; begin += BLOCK) {
    count_t end = least(begin + BLOCK, count);
    SIMD
    for (count_t i = begin; i < end; i++) out[i] = mask[i] ? 0 : out[i];
  }
}
