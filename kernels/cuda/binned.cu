// Binned score counts.
//
// Instantiation: binned_counts.

#include "common.cuh"

constexpr int THREADS = 256;
constexpr int MOST_BINS = 1024;  // a power of two

// First bin whose edge is at least the score, by keys; keys beyond the bins are the largest.
__device__ __forceinline__ int bin_of_score(const uint32* edges, int bins, float score) {
    const uint32 key = order_key(score);
    int below = 0;
    for (int step = MOST_BINS / 2; step > 0; step /= 2)
        below += edges[below + step - 1] < key ? step : 0;
    return is_nan(score) || below >= bins ? bins - 1 : below;
}

// Counts pixels by class and bin of a score.
//
//   scores      (count,) float32 of the true class
//   truth, top  (count,) integers of the given codes
//   top_scores  (count,) float32 of the top class
//   edges       (bins,) float32, ascending, not NaN; at most MOST_BINS
//   counts      (3, num_classes, bins), at most 2^32 - 1 in all, starts at 0: pixels by truth and scores, those of them
//               whose top class is right, and others by top class and top_scores
//
// Pixels whose truth is ignore or outside [0, num_classes) are excluded. Threads stride over the pixels; the lanes of a
// warp that share a count add once. Integer additions commute, so the counts do not depend on the order.
__global__ void __launch_bounds__(THREADS)
    binned_counts(const float* scores, const void* truth, int truth_code, const void* top, int top_code,
                  const float* top_scores, int64 count, const float* edges, int bins, int num_classes, int64 ignore,
                  uint32* counts) {
    __shared__ uint32 keys[MOST_BINS];
    for (int bin = threadIdx.x; bin < MOST_BINS; bin += THREADS)
        keys[bin] = bin < bins ? order_key(edges[bin]) : 0xffffffffu;
    __syncthreads();
    const uint32 table = static_cast<uint32>(num_classes) * bins;
    const int64 stride = static_cast<int64>(gridDim.x) * THREADS;
    for (int64 start = blockIdx.x * static_cast<int64>(THREADS); start < count; start += stride) {
        const int64 index = start + threadIdx.x;
        const int64 row = index < count ? load_integer(truth, truth_code, index) : -1;
        const bool counted = row >= 0 && row < num_classes && row != ignore;
        uint32 own = NO_CELL, hit = NO_CELL, wrong = NO_CELL;
        if (counted) {
            own = static_cast<uint32>(row) * bins + bin_of_score(keys, bins, scores[index]);
            const int64 best = load_integer(top, top_code, index);
            if (best == row)
                hit = table + own;
            else if (best >= 0 && best < num_classes)
                wrong = 2 * table + static_cast<uint32>(best) * bins + bin_of_score(keys, bins, top_scores[index]);
        }
        count_together(counts, own);
        count_together(counts, hit);
        count_together(counts, wrong);
    }
}
