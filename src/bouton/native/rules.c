// The rules of VolumePlasticity and Crystallization.

#include "common.h"

static double rates_of_block(const float *weight, float steepness, float *rates, count_t count) {
  float sum = 0.0f;
  SIMD_SUM(sum)
  for (count_t i = 0; i < count; i++) {
    float rate = power_of_2(steepness / (or_0(fabsf(weight[i])) + 1.0f));
    if (rates) rates[i] = rate;
    sum += rate;
  }
  return sum;
}

// Rates 2 ** (steepness / (|w| + 1)), where there is room for them, and their sum.
static double mean_rates(const float *weight, count_t count, float steepness, float *rates, int threads) {
  double sums[PARTS];
  THREADS(count)
  for (int part = 0; part < PARTS; part++) {
    sums[part] = 0.0;
    for (count_t block = first_of(part, count); block < first_of(part + 1, count); block++) {
      count_t begin = block * BLOCK;
      float *own = rates ? rates + begin : 0;
      sums[part] += rates_of_block(weight + begin, steepness, own, least(BLOCK, count - begin));
    }
  }
  return sum_of(sums);
}

void volume_total(const float *weight, count_t count, float steepness, double *total, int threads) {
  *total = mean_rates(weight, count, steepness, 0, threads);
}

// The rates times `scale`, by default that which makes their mean 1, and times noise, if there is a table of
// it: run after run of synapses reads it from a place of its own. `start` is the place of the first synapse.
void volume_rates(const float *weight, count_t count, float steepness, const double *scale, const float *table,
                  count_t size, count_t run, count_t start, count_t first, count_t stride, float *rates,
                  int threads) {
  double total = scale ? 0.0 : mean_rates(weight, count, steepness, rates, threads);
  float factor = (float)(scale ? *scale : (double)count / total);
  THREADS(count)
  for (count_t begin = 0; begin < count; begin += BLOCK) {
    count_t end = least(begin + BLOCK, count);
    if (scale) rates_of_block(weight + begin, steepness, rates + begin, end - begin);
    if (!table) {
      SIMD
      for (count_t i = begin; i < end; i++) rates[i] *= factor;
      continue;
    }
    for (count_t i = begin; i < end;) {
      count_t own = (start + i) / run, until = least((own + 1) * run - start, end);
      const float *noise = table + (first + own * stride) % size + (start - own * run);
      SIMD
      for (count_t j = i; j < until; j++) rates[j] *= factor * noise[j];
      i = until;
    }
  }
}

// Crystallization: `less` is what the factor differs from 1 by.
void crystallize(float *rates, const float *weight, const float *gradient, float threshold, const float *most,
                 float less, count_t count, int threads) {
  float limit = *most;
  THREADS(count)
  for (count_t begin = 0; begin < count; begin += BLOCK) {
    count_t end = least(begin + BLOCK, count);
    SIMD
    for (count_t i = begin; i < end; i++) {
      float size = or_0(fabsf(weight[i])), pull = fabsf(gradient[i]);
      int settled = (size * threshold > pull) | (pull > limit);
      rates[i] += settled ? less * rates[i] : 0.0f;
    }
  }
}
