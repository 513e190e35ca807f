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

// Adds to how often each node was active how often it was since, and makes of it the factor of its deviations.
void activity(double *active, const double *since, float *factors, count_t nodes) {
  double total = 0.0;
  for (count_t node = 0; node < nodes; node++) total += active[node] += since[node];
  for (count_t node = 0; node < nodes; node++) {
    double factor = total > 0.0 ? 1.1 - 0.1 * active[node] * (double)nodes / total : 1.0;
    factors[node] = (float)(factor < 0.8 ? 0.8 : factor);
  }
}

// Groups of `gamma` neighbours in [outer, gamma, inner]. MultiSynapse: each member becomes the sum of its group.
static void sum_one(const float *members, count_t gamma, count_t inner, float *sums) {
  SIMD
  for (count_t i = 0; i < inner; i++) sums[i] = members[i] + members[inner + i];
  for (count_t member = 2; member < gamma; member++)
    SIMD
    for (count_t i = 0; i < inner; i++) sums[i] += members[member * inner + i];
}

static inline float sum_side_by_side(const float *members, count_t gamma) {
  float sum = members[0];
  for (count_t member = 1; member < gamma; member++) sum += members[member];
  return sum;
}

void pool(const float *output, count_t outer, count_t gamma, count_t inner, float *pooled, int threads) {
  count_t group = gamma * inner;
  if (group == 2) {
    THREADS(2 * outer)
    for (count_t i = 0; i < outer; i++) pooled[2 * i] = pooled[2 * i + 1] = output[2 * i] + output[2 * i + 1];
  } else if (inner == 1) {
    THREADS(outer * gamma)
    for (count_t i = 0; i < outer; i++) {
      float sum = sum_side_by_side(output + i * gamma, gamma);
      for (count_t member = 0; member < gamma; member++) pooled[i * gamma + member] = sum;
    }
  } else {
    THREADS(outer * group)
    for (count_t i = 0; i < outer; i++) {
      float *own = pooled + i * group;
      sum_one(output + i * group, gamma, inner, own);
      for (count_t member = 1; member < gamma; member++) memcpy(own + member * inner, own, inner * sizeof *own);
    }
  }
}

// [outer, gamma, inner] -> [outer, inner]; `factors`, if there are any, have one for each member.
void sum_members(const float *members, const float *factors, count_t outer, count_t gamma, count_t inner,
                 float *sums, int threads) {
  count_t group = gamma * inner;
  if (!factors && group == 2) {
    THREADS(2 * outer)
    for (count_t i = 0; i < outer; i++) sums[i] = members[2 * i] + members[2 * i + 1];
    return;
  }
  if (!factors && inner == 1) {
    THREADS(outer * gamma)
    for (count_t i = 0; i < outer; i++) sums[i] = sum_side_by_side(members + i * gamma, gamma);
    return;
  }
  THREADS(outer * group)
  for (count_t i = 0; i < outer; i++) {
    float *own = sums + i * inner;
    if (!factors) {
      sum_one(members + i * group, gamma, inner, own);
      continue;
    }
    for (count_t member = 0; member < gamma; member++) {
      const float *from = members + i * group + member * inner;
      float factor = factors[i * gamma + member];
      SIMD
      for (count_t k = 0; k < inner; k++) own[k] = (member ? own[k] : 0.0f) + factor * from[k];
    }
  }
}

// [outer, inner] -> [outer, gamma, inner], times factors.
void repeat(const float *values, const float *factors, count_t outer, count_t gamma, count_t inner, float *members,
            int threads) {
  count_t group = gamma * inner;
  if (!factors && group == 2) {
    THREADS(2 * outer)
    for (count_t i = 0; i < outer; i++) members[2 * i] = members[2 * i + 1] = values[i];
    return;
  }
  if (!factors && inner == 1) {
    THREADS(outer * gamma)
    for (count_t i = 0; i < outer; i++)
      for (count_t member = 0; member < gamma; member++) members[i * gamma + member] = values[i];
    return;
  }
  THREADS(outer * group)
  for (count_t i = 0; i < outer; i++)
    for (count_t member = 0; member < gamma; member++) {
      float *own = members + i * group + member * inner;
      const float *from = values + i * inner;
      if (!factors) {
        memcpy(own, from, inner * sizeof *own);
        continue;
      }
      float factor = factors[i * gamma + member];
      SIMD
      for (count_t k = 0; k < inner; k++) own[k] = factor * from[k];
    }
}
