// Score counts and exact quantiles.
//
// Instantiations: score_counts, largest_weight, weighted_score_counts, add_fixed_point, select_prefix<T> and
// kth_score<T> with T = uint64 (counts) or double (weighted counts), position_quantiles.
//
// Source: the k-th smallest of n scores by counting the halves of an order-preserving key, high then low.

#include "common.cuh"

constexpr int BINS = 65536;
constexpr int THREADS = 256;
constexpr uint32 NO_BIN = 0xffffffffu;

// Bin of a score in one row: its key's high half, or with a prefix the low half of a key whose high half is the prefix.
__device__ __forceinline__ uint32 bin_of_key(uint32 key, const int64* prefix, int row) {
    if (prefix == nullptr) return key >> 16;
    return static_cast<int64>(key >> 16) == prefix[row] ? key & 0xffffu : NO_BIN;
}

// Row of a score's class, or -1 where it counts in the pooled row alone.
__device__ __forceinline__ int row_of_class(const void* classes, int class_code, int64 index, int num_classes) {
    if (classes == nullptr) return -1;
    const int64 value = load_integer(classes, class_code, index);
    return value >= 0 && value < num_classes ? static_cast<int>(value) : -1;
}

// Adds one for each lane to its bin, the lanes of a warp that share a bin in one addition. All lanes take part.
__device__ __forceinline__ void count_together(uint64* row, uint32 bin) {
    const uint32 peers = __match_any_sync(ALL_LANES, bin);
    const int first = __ffs(peers) - 1;
    if (bin != NO_BIN && first == static_cast<int>(threadIdx.x % 32))
        atomicAdd(&row[bin], static_cast<uint64>(__popc(peers)));
}

// Counts of scores a bin, added to what counts holds.
//
//   scores   (count,) float32; NaN is left out
//   classes  (count,) integers of the given code, or null
//   prefix   (num_classes + 1,) high halves, negative: none; or null: the bins are the high halves
//   counts   (num_classes + 1, 65536); the last row pools all classes
//
// Threads stride over the scores; integer additions commute, so the counts do not depend on the order.
__global__ void __launch_bounds__(THREADS)
    score_counts(const float* scores, int64 count, const void* classes, int class_code, int num_classes,
                 const int64* prefix, uint64* counts) {
    const int64 stride = static_cast<int64>(gridDim.x) * THREADS;
    for (int64 start = blockIdx.x * static_cast<int64>(THREADS); start < count; start += stride) {
        const int64 index = start + threadIdx.x;
        const float score = index < count ? scores[index] : 0.0f;
        const bool seen = index < count && !is_nan(score);
        const uint32 key = order_key(score);
        count_together(counts + static_cast<int64>(num_classes) * BINS,
                       seen ? bin_of_key(key, prefix, num_classes) : NO_BIN);
        const int row = seen ? row_of_class(classes, class_code, index, num_classes) : -1;
        const uint32 bin = row >= 0 ? bin_of_key(key, prefix, row) : NO_BIN;
        if (bin != NO_BIN) atomicAdd(&counts[static_cast<int64>(row) * BINS + bin], 1ull);
    }
}

// Bits of the largest magnitude among weights: the bits of positive doubles sort like the doubles.
//
//   weights  (count,) float64
//   largest  (1,) starts at 0
__global__ void __launch_bounds__(THREADS) largest_weight(const double* weights, int64 count, uint64* largest) {
    uint64 bits = 0;
    const int64 stride = static_cast<int64>(gridDim.x) * THREADS;
    for (int64 index = blockIdx.x * static_cast<int64>(THREADS) + threadIdx.x; index < count; index += stride)
        bits = max(bits, static_cast<uint64>(__double_as_longlong(fabs(weights[index]))));
    for (int step = 16; step > 0; step /= 2) bits = max(bits, __shfl_xor_sync(ALL_LANES, bits, step));
    if (threadIdx.x % 32 == 0) atomicMax(largest, bits);
}

// Power of two that turns the weights into integers whose sum of count fits 62 bits.
__device__ __forceinline__ int fixed_point_shift(uint64 largest, int64 count) {
    const int exponent = static_cast<int>(largest >> 52) - 1022;  // the largest weight is below 2^exponent
    int bits = 0;
    while ((1ll << bits) < count) ++bits;
    return 62 - bits - exponent;
}

// As score_counts, each score counting its weight, as integers: the sum of floats would depend on the order.
//
//   weights  (count,) float64, finite; each is rounded to 2^-(61 - log2 count) of the largest
//   largest  (1,) of largest_weight
//   sums     (num_classes + 1, 65536) two's complement sums, starts at 0
__global__ void __launch_bounds__(THREADS)
    weighted_score_counts(const float* scores, const double* weights, int64 count, const void* classes, int class_code,
                          int num_classes, const int64* prefix, const uint64* largest, uint64* sums) {
    const int shift = fixed_point_shift(*largest, count);
    const int64 stride = static_cast<int64>(gridDim.x) * THREADS;
    for (int64 index = blockIdx.x * static_cast<int64>(THREADS) + threadIdx.x; index < count; index += stride) {
        const float score = scores[index];
        if (is_nan(score)) continue;
        const uint32 key = order_key(score);
        const uint64 weight = static_cast<uint64>(__double2ll_rn(ldexp(weights[index], shift)));
        const uint32 pooled = bin_of_key(key, prefix, num_classes);
        if (pooled != NO_BIN) atomicAdd(&sums[static_cast<int64>(num_classes) * BINS + pooled], weight);
        const int row = row_of_class(classes, class_code, index, num_classes);
        const uint32 bin = row >= 0 ? bin_of_key(key, prefix, row) : NO_BIN;
        if (bin != NO_BIN) atomicAdd(&sums[static_cast<int64>(row) * BINS + bin], weight);
    }
}

// Adds the integer sums of weighted_score_counts to float64 counts.
//
//   sums    (size,), counts  (size,), largest  (1,) as above; count: the number of scores summed
__global__ void __launch_bounds__(THREADS)
    add_fixed_point(const uint64* sums, double* counts, int64 size, const uint64* largest, int64 count) {
    const int64 index = blockIdx.x * static_cast<int64>(THREADS) + threadIdx.x;
    if (index >= size) return;
    const double sum = static_cast<double>(static_cast<int64>(sums[index]));
    counts[index] += ldexp(sum, -fixed_point_shift(*largest, count));
}

// ---- k-th score --------------------------------------------------------------------------------------------------

// Where a rank falls among the values of the threads of a block, taken in order.
template <typename T>
struct Found {
    int thread;  // the first whose running sum reaches the rank
    T before;    // the sum before it
    T total;     // the sum of all
};

// All threads of the block call it; a rank beyond the total is taken as the total.
template <typename T>
__device__ __forceinline__ Found<T> find_rank(T value, T rank) {
    __shared__ T values[THREADS];
    __shared__ Found<T> found;
    values[threadIdx.x] = value;
    if (threadIdx.x == 0) found = {0, 0, 0};
    __syncthreads();
    // Every thread adds in the same order, so the sums of neighbors meet exactly, in floating point too.
    T before = 0, total = 0;
    for (uint32 t = 0; t < THREADS; ++t) {
        before = t == threadIdx.x ? total : before;
        total += values[t];
    }
    rank = min(rank, total);
    if (before < rank && rank <= before + value) found = {static_cast<int>(threadIdx.x), before, total};
    __syncthreads();
    const Found<T> result = found;
    __syncthreads();
    return {result.thread, result.before, total};
}

// Bin of one row that holds the score of a rank, the sum before that bin, and the row's total.
template <typename T>
__device__ __forceinline__ Found<T> find_bin(const T* row, T rank) {
    __shared__ T chunks[THREADS];
    constexpr int CHUNK = BINS / THREADS;
    const int lane = threadIdx.x % 32;
    for (int chunk = threadIdx.x / 32; chunk < THREADS; chunk += THREADS / 32) {
        T sum = 0;
        for (int bin = lane; bin < CHUNK; bin += 32) sum += row[chunk * CHUNK + bin];
        for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, step);
        if (lane == 0) chunks[chunk] = sum;
    }
    __syncthreads();
    const Found<T> outer = find_rank<T>(chunks[threadIdx.x], rank);
    const T within = min(rank, outer.total) - outer.before;
    const Found<T> inner = find_rank<T>(row[outer.thread * CHUNK + threadIdx.x], within);
    return {outer.thread * CHUNK + inner.thread, outer.before + inner.before, outer.total};
}

// The bin that holds the k-th score of each row, and the rank inside that bin.
//
//   counts  (rows, 65536) uint64 or float64
//   ranks   (rows,) from 1, of the same type
//   prefix  (rows,) bin, -1 where the rank is beyond the row's total
//   within  (rows,) rank inside the bin; the rank itself where prefix is -1
//
// One block a row.
template <typename T>
__global__ void __launch_bounds__(THREADS) select_prefix(const T* counts, const T* ranks, int64* prefix, T* within) {
    const T rank = ranks[blockIdx.x];
    const Found<T> bin = find_bin<T>(counts + blockIdx.x * static_cast<int64>(BINS), rank);
    if (threadIdx.x != 0) return;
    const bool inside = rank <= bin.total;
    prefix[blockIdx.x] = inside ? bin.thread : -1;
    within[blockIdx.x] = inside ? rank - bin.before : rank;
}

// The k-th score of each row from the second pass's counts.
//
//   counts  (rows, 65536) of the low halves under prefix
//   prefix, within  of select_prefix
//   scores  (rows,) float32; +inf where prefix is -1, NaN where the bin holds fewer scores than the rank inside it
//
// One block a row.
template <typename T>
__global__ void __launch_bounds__(THREADS)
    kth_score(const T* counts, const int64* prefix, const T* within, float* scores) {
    const T rank = within[blockIdx.x];
    const int64 high = prefix[blockIdx.x];
    const Found<T> bin = find_bin<T>(counts + blockIdx.x * static_cast<int64>(BINS), rank);
    if (threadIdx.x != 0) return;
    // Weights do not add up to the same last bit in both passes; past the end means the last score there.
    const bool weighted = static_cast<T>(0.5) != static_cast<T>(0);
    const bool held = bin.total > 0 && (weighted || rank <= bin.total);
    const uint32 key = static_cast<uint32>(high) << 16 | static_cast<uint32>(bin.thread);
    scores[blockIdx.x] = high < 0 ? infinity() : held ? value_of_key(key) : not_a_number();
}

// ---- quantiles of positions --------------------------------------------------------------------------------------

// The conformal threshold of every position of a map.
//
//   scores    (maps, positions) float32, NaN = not seen
//   ranks     (maps + 1,) conformal rank of n scores, n + 1 for an infinite threshold
//   fallback  value where no score was seen
//   quantile  (positions,) float32
//
// One thread a position: eight sweeps over its scores, each settling four bits of the key of the k-th one. Neighboring
// threads read neighboring scores; each counts in its own column of shared memory.
constexpr int POSITIONS = 128;
__global__ void __launch_bounds__(POSITIONS)
    position_quantiles(const float* scores, int maps, int64 positions, const int* ranks, float fallback,
                       float* quantile) {
    __shared__ int tally[16][POSITIONS];
    const int64 position = blockIdx.x * static_cast<int64>(POSITIONS) + threadIdx.x;
    if (position >= positions) return;
    uint32 key = 0;
    int rank = 0;
    for (int shift = 28; shift >= 0; shift -= 4) {
        for (int digit = 0; digit < 16; ++digit) tally[digit][threadIdx.x] = 0;
        int seen = 0;
        for (int map = 0; map < maps; ++map) {
            const float score = scores[map * positions + position];
            const uint32 candidate = order_key(score);
            // The digits settled so far; a shift by 32 is not defined, so the first sweep shifts twice.
            if (is_nan(score) || (candidate >> shift >> 4) != (key >> shift >> 4)) continue;
            ++tally[candidate >> shift & 15][threadIdx.x];
            ++seen;
        }
        if (shift == 28) {
            rank = ranks[seen];
            if (seen == 0 || rank > seen) {
                quantile[position] = seen == 0 ? fallback : infinity();
                return;
            }
        }
        uint32 digit = 0;
        while (rank > tally[digit][threadIdx.x]) rank -= tally[digit++][threadIdx.x];
        key |= digit << shift;
    }
    quantile[position] = value_of_key(key);
}
