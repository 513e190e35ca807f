// One pass over memory for what torch's operations take several for. Numbers are float32 and lie side by
// side. Wherever this file cannot be compiled, its callers use operations of torch, and tests compare both.
// Results do not depend on the number of threads.

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __F16C__
#include <immintrin.h>
#endif

typedef int64_t count_t;

// Numbers that are summed in one go, those that are one thread's work, and sums that are made apart.
enum { BLOCK = 4096, FEW = 32768, PARTS = 64 };

#define PRAGMA(text) _Pragma(#text)
#define SIMD PRAGMA(omp simd)
#define SIMD_SUM(total) PRAGMA(omp simd reduction(+ : total))
#define THREADS(work) PRAGMA(omp parallel for num_threads(threads) if ((work) > FEW))

static count_t least(count_t a, count_t b) { return a < b ? a : b; }

// The first block of a part of some numbers.
static count_t first_of(int part, count_t count) { return (count + BLOCK - 1) / BLOCK * part / PARTS; }

static double sum_of(const double *sums) {
  double total = 0.0;
  for (int part = 0; part < PARTS; part++) total += sums[part];
  return total;
}

// A size, and 0 for one that is infinite or not a number.
static inline float or_0(float size) { return size <= FLT_MAX ? size : 0.0f; }

static inline float multiply_add(float a, float b, float c) {
#ifdef __FMA__
  return fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// ---- Sizes of synapses

void row_sizes(const float *weight, count_t rows, count_t columns, float *sums, int threads) {
  THREADS(rows * columns)
  for (count_t row = 0; row < rows; row++) {
    double sum = 0.0;
    for (count_t begin = 0; begin < columns; begin += BLOCK) {
      const float *own = weight + row * columns + begin;
      float total = 0.0f;
      SIMD_SUM(total)
      for (count_t i = 0; i < least(BLOCK, columns - begin); i++) total += fabsf(own[i]);
      sum += total;
    }
    sums[row] = (float)sum;
  }
}

void mean_size(const float *weight, count_t count, float *mean, int threads) {
  double sums[PARTS];
  THREADS(count)
  for (int part = 0; part < PARTS; part++) {
    sums[part] = 0.0;
    for (count_t block = first_of(part, count); block < first_of(part + 1, count); block++) {
      const float *own = weight + block * BLOCK;
      float sum = 0.0f;
      SIMD_SUM(sum)
      for (count_t i = 0; i < least(BLOCK, count - block * BLOCK); i++) sum += or_0(fabsf(own[i]));
      sums[part] += sum;
    }
  }
  *mean = (float)(sum_of(sums) / (double)count);
}

// ---- Grapes: factors in the place of the sums

void shares(float *sums, count_t rows, float low, float high, int normalize) {
  float largest = 0.0f;
  double total = 0.0;
  for (count_t row = 0; row < rows; row++) {
    float known = or_0(sums[row]);
    largest = known > largest ? known : largest;
  }
  for (count_t row = 0; row < rows; row++) {
    float share = sums[row] / largest;
    float factor = 2.0f * (share <= FLT_MAX ? share : 0.5f);
    factor = factor < low ? low : factor;
    sums[row] = factor > high ? high : factor;
    total += sums[row];
  }
  if (!normalize) return;
  float mean = (float)(total / (double)rows);
  for (count_t row = 0; row < rows; row++) sums[row] /= mean;
}

// ---- Rates: 1 + scale * value, where `factors`, if there are any, have a further factor for each row

// Eight at a time, where a CPU has an instruction for that.
static void widen(const uint16_t *values, float *out, count_t count) {
  count_t i = 0;
#ifdef __F16C__
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(values + i))));
#endif
  for (; i < count; i++) {
    _Float16 value;
    memcpy(&value, values + i, sizeof value);
    out[i] = (float)value;
  }
}

typedef void work_t(const void *own, count_t first, count_t count, const float *values, float scale);

// Calls `work` for some synapses after another. Values take 4 bytes, 2, or 0: then all of them are 1.
static void for_each_block(work_t *work, const void *own, const char *values, int bytes, float scale,
                           const float *factors, count_t rows, count_t columns, int threads) {
  if (!factors) columns *= rows, rows = 1;
  count_t blocks = (columns + BLOCK - 1) / BLOCK;
  THREADS(rows * columns)
  for (count_t block = 0; block < rows * blocks; block++) {
    count_t row = block / blocks, begin = block % blocks * BLOCK;
    count_t first = row * columns + begin, count = least(BLOCK, columns - begin);
    float room[BLOCK];
    const float *read = bytes == 4 ? (const float *)values + first : room;
    if (bytes == 2) widen((const uint16_t *)values + first, room, count);
    for (count_t i = 0; !bytes && i < count; i++) room[i] = 1.0f;
    work(own, first, count, read, factors ? scale * factors[row] : scale);
  }
}

typedef struct {
  float *out;
  const float *base, *change;
} deviate_t;

static void deviate_block(const void *given, count_t first, count_t count, const float *values, float scale) {
  const deviate_t *own = given;
  float *out = own->out + first;
  const float *base = own->base + first, *change = own->change + first;
  SIMD
  for (count_t i = 0; i < count; i++) out[i] = base[i] + scale * change[i] * values[i];
}

// out = base + change * (rate - 1)
void deviate(float *out, const float *base, const float *change, const char *values, int bytes, float scale,
             const float *factors, count_t rows, count_t columns, int threads) {
  deviate_t own = {out, base, change};
  for_each_block(deviate_block, &own, values, bytes, scale, factors, rows, columns, threads);
}

typedef struct {
  float *now;
  const float *before;
} blend_t;

// As torch.lerp: a rate of 1 keeps the bits of `now`, and one of 0 those of `before`.
static inline float blended(float before, float now, float deviation) {
  float change = now - before;
  return deviation < -0.5f ? before + (1.0f + deviation) * change : now + deviation * change;
}

static void blend_block(const void *given, count_t first, count_t count, const float *values, float scale) {
  const blend_t *own = given;
  float *now = own->now + first;
  const float *before = own->before + first;
  SIMD
  for (count_t i = 0; i < count; i++) now[i] = blended(before[i], now[i], scale * values[i]);
}

// now = before + (now - before) * rate
void blend(float *now, const float *before, const char *values, int bytes, float scale, const float *factors,
           count_t rows, count_t columns, int threads) {
  blend_t own = {now, before};
  for_each_block(blend_block, &own, values, bytes, scale, factors, rows, columns, threads);
}

// ---- VolumePlasticity

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

// ---- Crystallization: `less` is what the factor differs from 1 by

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

// ---- Activity: how many outputs [outer, nodes, inner] of each node are beyond a size

void count_beyond(const float *output, count_t outer, count_t nodes, count_t inner, float size, double *counts,
                  int threads) {
  THREADS(outer * nodes * inner)
  for (count_t begin = 0; begin < nodes; begin += 64) {
    int32_t found[64] = {0};
    count_t some = least(64, nodes - begin);
    for (count_t o = 0; o < outer; o++) {
      const float *own = output + (o * nodes + begin) * inner;
      if (inner == 1) {
        SIMD
        for (count_t n = 0; n < some; n++) found[n] += fabsf(own[n]) > size;
        continue;
      }
      for (count_t n = 0; n < some; n++) {
        int32_t total = 0;
        SIMD_SUM(total)
        for (count_t i = 0; i < inner; i++) total += fabsf(own[n * inner + i]) > size;
        found[n] += total;
      }
    }
    for (count_t n = 0; n < some; n++) counts[begin + n] += found[n];
  }
}

// ---- MultiSynapse: each of `gamma` neighbours in [outer, gamma, inner] becomes the sum of them all

static void pool_one(const float *output, count_t gamma, count_t inner, float *pooled) {
  SIMD
  for (count_t i = 0; i < inner; i++) pooled[i] = output[i] + output[inner + i];
  for (count_t member = 2; member < gamma; member++)
    SIMD
    for (count_t i = 0; i < inner; i++) pooled[i] += output[member * inner + i];
  for (count_t member = 1; member < gamma; member++)
    memcpy(pooled + member * inner, pooled, inner * sizeof *pooled);
}

void pool(const float *output, count_t outer, count_t gamma, count_t inner, float *pooled, int threads) {
  count_t group = gamma * inner;
  if (group == 2) {
    THREADS(2 * outer)
    for (count_t i = 0; i < outer; i++) pooled[2 * i] = pooled[2 * i + 1] = output[2 * i] + output[2 * i + 1];
  } else {
    THREADS(outer * group)
    for (count_t i = 0; i < outer; i++) pool_one(output + i * group, gamma, inner, pooled + i * group);
  }
}

// ---- SpineRemodeling

void largest_size(const float *weight, count_t count, float *largest, int threads) {
  float found[PARTS], most = 0.0f;
  THREADS(count)
  for (int part = 0; part < PARTS; part++) {
    count_t begin = first_of(part, count) * BLOCK, end = least(first_of(part + 1, count) * BLOCK, count);
    float own = 0.0f;
    PRAGMA(omp simd reduction(max : own))
    for (count_t i = begin; i < end; i++) {
      float size = or_0(fabsf(weight[i]));
      own = size > own ? size : own;
    }
    found[part] = own;
  }
  for (int part = 0; part < PARTS; part++) most = found[part] > most ? found[part] : most;
  *largest = most;
}

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

// ---- Masks: what is not chosen keeps its bits

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
