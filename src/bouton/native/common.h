// What the loops share. Numbers are float32 and lie side by side. Wherever these files cannot be compiled,
// operations of torch take their place, and tests compare the two. Results do not depend on the number of threads.

#pragma once

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef int64_t count_t;

// Numbers that are summed in one go, those that are one thread's work, and sums that are made apart.
enum { BLOCK = 4096, FEW = 32768, PARTS = 64 };

#define PRAGMA(text) _Pragma(#text)
#define SIMD PRAGMA(omp simd)
#define SIMD_SUM(total) PRAGMA(omp simd reduction(+ : total))
#define THREADS(work) PRAGMA(omp parallel for num_threads(threads) if ((work) > FEW))

static inline count_t least(count_t a, count_t b) { return a < b ? a : b; }

// The first block of a part of some numbers.
static inline count_t first_of(int part, count_t count) { return (count + BLOCK - 1) / BLOCK * part / PARTS; }

static inline double sum_of(const double *sums) {
  double total = 0.0;
  for (int part = 0; part < PARTS; part++) total += sums[part];
  return total;
}

// A size, and 0 for one that is infinite or not a number.
static inline float or_0(float size) { return size <= FLT_MAX ? size : 0.0f; }

// Eight numbers at a time, in what gcc and clang have for all CPUs.
enum { LANES = 8 };
typedef float lanes_t __attribute__((vector_size(4 * LANES)));
typedef int32_t masks_t __attribute__((vector_size(4 * LANES)));

static inline lanes_t sizes_at(const float *weight, int finite) {
  lanes_t read;
  memcpy(&read, weight, sizeof read);
  lanes_t sizes = (lanes_t)((masks_t)read & INT32_MAX);
  return finite ? (lanes_t)((masks_t)sizes & (sizes <= FLT_MAX)) : sizes;
}

// With four sums that go on at a time, because each addition waits for the one before it. `finite`: see or_0.
static inline float sum_of_sizes(const float *weight, count_t count, int finite) {
  lanes_t sums[4] = {{0}};
  count_t i = 0;
  for (; i + 4 * LANES <= count; i += 4 * LANES)
    for (int k = 0; k < 4; k++) sums[k] += sizes_at(weight + i + k * LANES, finite);
  for (; i + LANES <= count; i += LANES) sums[0] += sizes_at(weight + i, finite);
  lanes_t all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  float sum = 0.0f;
  for (int lane = 0; lane < LANES; lane++) sum += all[lane];
  for (; i < count; i++) sum += finite ? or_0(fabsf(weight[i])) : fabsf(weight[i]);
  return sum;
}

// The mean of all sizes.
void mean_size(const float *weight, count_t count, float *mean, int threads);

static inline float multiply_add(float a, float b, float c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// 2 to the power of x, for x above -127 and below 128.
static inline float power_of_2(float x) {
  float whole = rintf(x), rest = x - whole, power = 1.5252734e-5f;
  power = multiply_add(power, rest, 1.5403530e-4f);
  power = multiply_add(power, rest, 1.3333558e-3f);
  power = multiply_add(power, rest, 9.6181291e-3f);
  power = multiply_add(power, rest, 5.5504109e-2f);
  power = multiply_add(power, rest, 2.4022651e-1f);
  power = multiply_add(power, rest, 6.9314718e-1f);
  power = multiply_add(power, rest, 1.0f);
  int32_t bits = ((int32_t)whole + 127) << 23;
  float scale;
  memcpy(&scale, &bits, sizeof scale);
  return power * scale;
}
