// What is added to a weight, times rates: 1 + scale * value, where `factors`, if there are any, have a further
// factor for each row.

#include "common.h"

#ifdef __F16C__
#include <immintrin.h>
#endif

static inline float widened(uint16_t value) {
#ifdef __F16C__
  return _cvtsh_ss(value);
#else
  _Float16 number;
  memcpy(&number, &value, sizeof number);
  return (float)number;
#endif
}

// Eight at a time, where a CPU has an instruction for that.
static void widen(const uint16_t *values, float *out, count_t count) {
  count_t i = 0;
#ifdef __F16C__
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(values + i))));
#endif
  for (; i < count; i++) out[i] = widened(values[i]);
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
