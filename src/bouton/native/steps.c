// A step of torch's SGD with rates in one pass over a weight. In torch's order of operations, for its bits: see
// native/steps.py. Adam's bits cannot be had: torch's square roots are not always the nearest ones.

#include "rates.h"

typedef struct {
  float lr, momentum, fresh, decay;  // fresh: the share of the gradient in the momentum
  int nesterov;
  float sign;  // of the gradient
} sgd_t;

typedef struct {
  float *weight, *buffer;
  const float *gradient;
  sgd_t set;
} step_t;

static inline float pull(float gradient, float weight, float sign, float decay) {
  gradient *= sign;
  return decay != 0.0f ? multiply_add(weight, decay, gradient) : gradient;
}

static void plain_block(const void *given, block_t block) {
  const step_t *own = given;
  const sgd_t set = own->set;
  const float *gradient = own->gradient + block.first;
  float *weight = own->weight + block.first;
  SIMD
  for (count_t i = 0; i < block.count; i++) {
    float before = weight[i], change = pull(gradient[i], before, set.sign, set.decay);
    float now = multiply_add(change, -set.lr, before);
    weight[i] = blended(before, now, block.shift + block.scale * block.values[i]);
  }
}

static void momentum_block(const void *given, block_t block) {
  const step_t *own = given;
  const sgd_t set = own->set;
  const float *gradient = own->gradient + block.first;
  float *weight = own->weight + block.first, *buffer = own->buffer + block.first;
  SIMD
  for (count_t i = 0; i < block.count; i++) {
    float before = weight[i], change = pull(gradient[i], before, set.sign, set.decay);
    float moved = multiply_add(change, set.fresh, buffer[i] * set.momentum);
    buffer[i] = moved;
    change = set.nesterov ? multiply_add(moved, set.momentum, change) : moved;
    float now = multiply_add(change, -set.lr, before);
    weight[i] = blended(before, now, block.shift + block.scale * block.values[i]);
  }
}

// Without momentum there is no buffer.
void sgd(float *weight, const float *gradient, float *buffer, sgd_t set, rates_t rates, int threads) {
  step_t own = {weight, buffer, gradient, set};
  for_each_block(buffer ? momentum_block : plain_block, &own, rates, threads);
}
