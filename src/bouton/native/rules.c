// The rules of VolumePlasticity and Crystallization.

#include "common.h"

// A table of noise: run after run of synapses reads it from a place of its own. `start` is the place of the first.
typedef struct {
  const float *table;
  count_t size, run, start, first, stride;
} noise_t;

static inline float rate_of(float weight, float steepness) {
  return power_of_2(steepness / (or_0(fabsf(weight)) + 1.0f));
}

static double sum_of_rates(const float *weight, float steepness, count_t count) {
  float sum = 0.0f;
  SIMD_SUM(sum)
  for (count_t i = 0; i < count; i++) sum += rate_of(weight[i], steepness);
  return sum;
}

// Apart, because what is written under a condition is written by masks, which some CPUs are very slow at.
static double write_rates(const float *weight, float steepness, float *rates, count_t count) {
  float sum = 0.0f;
  SIMD_SUM(sum)
  for (count_t i = 0; i < count; i++) sum += rates[i] = rate_of(weight[i], steepness);
  return sum;
}

static void fluctuate(float *rates, noise_t noise, count_t begin, count_t end) {
  while (begin < end) {
    count_t run = (noise.start + begin) / noise.run, until = least((run + 1) * noise.run - noise.start, end);
    const float *own = noise.table + (noise.first + run * noise.stride) % noise.size + (noise.start - run * noise.run);
    SIMD
    for (count_t i = begin; i < until; i++) rates[i] *= own[i];
    begin = until;
  }
}

// Rates noise * 2 ** (steepness / (|w| + 1)), where there is room for them and a table of noise; and the sum of
// what they are without noise.
double volume_rates(const float *weight, count_t count, float steepness, noise_t noise, float *rates, int threads) {
  double sums[PARTS];
  THREADS(count)
  for (int part = 0; part < PARTS; part++) {
    sums[part] = 0.0;
    for (count_t block = first_of(part, count); block < first_of(part + 1, count); block++) {
      count_t begin = block * BLOCK, end = least(begin + BLOCK, count);
      sums[part] += rates ? write_rates(weight + begin, steepness, rates + begin, end - begin)
                          : sum_of_rates(weight + begin, steepness, end - begin);
      if (rates && noise.table) fluctuate(rates, noise, begin, end);
    }
  }
  return sum_of(sums);
}

// Crystallization: `less` is what the factor differs from 1 by, and a rate as small as `frozen` becomes 0. Without
// `most` it is the mean of these weights.
void crystallize(float *rates, const float *weight, const float *gradient, float threshold, const float *most,
                 float less, float frozen, count_t count, int threads) {
  float limit;
  if (most) limit = *most;
  else mean_size(weight, count, &limit, threads);
  THREADS(count)
  for (count_t begin = 0; begin < count; begin += BLOCK) {
    count_t end = least(begin + BLOCK, count);
    SIMD
    for (count_t i = begin; i < end; i++) {
      float size = or_0(fabsf(weight[i])), pull = fabsf(gradient[i]);
      int settled = (size * threshold > pull) | (pull > limit);
      float rate = rates[i] + (settled ? less * rates[i] : 0.0f);
      rates[i] = rate > frozen ? rate : 0.0f;
    }
  }
}
