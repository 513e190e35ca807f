// What is done to a layer's outputs.

#include "common.h"

// Adds to `counts` how many outputs [outer, nodes, inner] of each node are beyond a size.
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

// Of how often each node was active, and how often it was since: the sum, and the factor of its deviations.
void activity(const double *before, const double *since, double *active, float *factors, count_t nodes) {
  double total = 0.0;
  for (count_t node = 0; node < nodes; node++) total += active[node] = before[node] + since[node];
  for (count_t node = 0; node < nodes; node++) {
    double factor = total > 0.0 ? 1.1 - 0.1 * active[node] * (double)nodes / total : 1.0;
    factors[node] = (float)(factor < 0.8 ? 0.8 : factor);
  }
}

// MultiSynapse: each of `gamma` neighbours in [outer, gamma, inner] becomes the sum of them all.
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
