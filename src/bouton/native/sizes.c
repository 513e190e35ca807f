// Sums, means and the largest of sizes of synapses.

#include "common.h"

// Into `sums`, or added to what they are.
void row_sizes(const float *weight, count_t rows, count_t columns, int adds, float *sums, int threads) {
  THREADS(rows * columns)
  for (count_t row = 0; row < rows; row++) {
    double sum = adds ? sums[row] : 0.0;
    for (count_t begin = 0; begin < columns; begin += BLOCK)
      sum += sum_of_sizes(weight + row * columns + begin, least(BLOCK, columns - begin), 0);
    sums[row] = (float)sum;
  }
}

void mean_size(const float *weight, count_t count, float *mean, int threads) {
  double sums[PARTS];
  THREADS(count)
  for (int part = 0; part < PARTS; part++) {
    sums[part] = 0.0;
    for (count_t block = first_of(part, count); block < first_of(part + 1, count); block++)
      sums[part] += sum_of_sizes(weight + block * BLOCK, least(BLOCK, count - block * BLOCK), 1);
  }
  *mean = (float)(sum_of(sums) / (double)count);
}

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

// Factors of Grapes in the place of the sums of sizes.
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
