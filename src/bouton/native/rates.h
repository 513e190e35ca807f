// Rates of synapses, as loops read them: 1 + shift + scale * value, where `nodes`, if there are any, have a factor
// of the value for each row, and `others` one of the whole rate for each synapse.

#pragma once

#include "common.h"

typedef struct {
  const char *values;
  int bytes;  // of each value: 4, 2, or 0 where all of them are 1
  float scale, shift;
  const float *nodes, *others;
  count_t rows, columns;
} rates_t;

// Synapses one after another in memory, and what their rates differ from 1 by: shift + scale * value.
typedef struct {
  count_t first, count;
  const float *values;
  float scale, shift;
} block_t;

typedef void work_t(const void *own, block_t block);

// Calls `work` for all synapses, some at a time.
void for_each_block(work_t *work, const void *own, rates_t rates, int threads);

// As torch.lerp: a rate of 1 keeps the bits of `now`, and one of 0 those of `before`.
static inline float blended(float before, float now, float deviation) {
  float change = now - before;
  return deviation < -0.5f ? before + (1.0f + deviation) * change : now + deviation * change;
}
