// What is added to a weight, times rates.

#include "rates.h"

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

static block_t times(block_t block, const float *others, float *room) {
  SIMD
  for (count_t i = 0; i < block.count; i++)
    room[i] = others[i] * (1.0f + block.shift + block.scale * block.values[i]) - 1.0f;
  return (block_t){block.first, block.count, room, 1.0f, 0.0f};
}

static const float ONES[BLOCK] = {[0 ... BLOCK - 1] = 1.0f};

void for_each_block(work_t *work, const void *own, rates_t rates, int threads) {
  count_t rows = rates.rows, columns = rates.columns;
  if (!rates.nodes) columns *= rows, rows = 1;
  count_t blocks = (columns + BLOCK - 1) / BLOCK;
  THREADS(rows * columns)
  for (count_t number = 0; number < rows * blocks; number++) {
    count_t row = number / blocks, begin = number % blocks * BLOCK;
    count_t first = row * columns + begin, count = least(BLOCK, columns - begin);
    float room[BLOCK];
    const float *values = rates.bytes == 4 ? (const float *)rates.values + first : rates.bytes == 2 ? room : ONES;
    if (rates.bytes == 2) widen((const uint16_t *)rates.values + first, room, count);
    block_t block = {first, count, values, rates.nodes ? rates.scale * rates.nodes[row] : rates.scale, rates.shift};
    work(own, rates.others ? times(block, rates.others + first, room) : block);
  }
}

typedef struct {
  float *out;
  const float *base, *change;
} deviate_t;

static void deviate_block(const void *given, block_t block) {
  const deviate_t *own = given;
  float *out = own->out + block.first;
  const float *base = own->base + block.first, *change = own->change + block.first;
  SIMD
  for (count_t i = 0; i < block.count; i++)
    out[i] = base[i] + change[i] * (block.shift + block.scale * block.values[i]);
}

// out = base + change * (rate - 1)
void deviate(float *out, const float *base, const float *change, rates_t rates, int threads) {
  deviate_t own = {out, base, change};
  for_each_block(deviate_block, &own, rates, threads);
}

typedef struct {
  float *now;
  const float *before;
} blend_t;

static void blend_block(const void *given, block_t block) {
  const blend_t *own = given;
  float *now = own->now + block.first;
  const float *before = own->before + block.first;
  SIMD
  for (count_t i = 0; i < block.count; i++)
    now[i] = blended(before[i], now[i], block.shift + block.scale * block.values[i]);
}

// now = before + (now - before) * rate
void blend(float *now, const float *before, rates_t rates, int threads) {
  blend_t own = {now, before};
  for_each_block(blend_block, &own, rates, threads);
}
