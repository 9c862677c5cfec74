// Score counts and exact quantiles.
//
// Instantiations: score_counts<HIGH>, HIGH for the first pass; largest_weight, weighted_score_counts, add_fixed_point, select_prefix<T> and
// kth_score<T> with T = uint64 (counts) or double (weighted counts), position_quantiles.
//
// Source: the k-th smallest of n scores by counting the halves of an order-preserving key, first high, then low.

#include "common.cuh"

constexpr int BINS = 65536;
constexpr int THREADS = 256;

// The high halves of scores from 2^-63 to 2: a block counts them, and zeros, in shared memory.
constexpr uint32 WINDOW_START = 0xa000, WINDOW = 8192, BIN_OF_ZERO = 0x8000;

// Bin of a score in one row: its key's high half, or with a prefix the low half of a key whose high half is the prefix.
__device__ __forceinline__ uint32 bin_of_key(uint32 key, const int64* prefix, int row) {
    if (prefix == nullptr) return key >> 16;
    return static_cast<int64>(key >> 16) == prefix[row] ? key & 0xffffu : NO_CELL;
}

// Row of a score's class, or -1 if it counts only in the pooled row.
__device__ __forceinline__ int row_of_class(const void* classes, int class_code, int64 index, int num_classes) {
    if (classes == nullptr) return -1;
    const int64 value = load_integer(classes, class_code, index);
    return value >= 0 && value < num_classes ? static_cast<int>(value) : -1;
}

// Adds the scores per bin to counts.
//
//   scores   (count,) float32; NaN is excluded
//   classes  (count,) integers of the given code, or null
//   prefix   (num_classes + 1,) high halves, negative: none; null for HIGH, whose bins are the high halves
//   counts   (num_classes + 1, 65536), fewer than 2^32 in all; the last row pools all classes
//
// Threads stride over the scores. With HIGH a block adds most scores of the pooled row to its own counts, and those to
// the result at its end; 32 bits suffice below 2^32 scores per block. Integer additions commute, so the counts do not
// depend on the order.
template <bool HIGH>
__global__ void __launch_bounds__(THREADS)
    score_counts(const float* scores, int64 count, const void* classes, int class_code, int num_classes,
                 const int64* prefix, uint64* counts) {
    __shared__ uint32 window[HIGH ? WINDOW + 1 : 1];
    const uint32 pooled = static_cast<uint32>(num_classes) * BINS;
    if (HIGH) {
        for (uint32 slot = threadIdx.x; slot <= WINDOW; slot += THREADS) window[slot] = 0;
        __syncthreads();
    }
    const int64 stride = static_cast<int64>(gridDim.x) * THREADS;
    for (int64 start = blockIdx.x * static_cast<int64>(THREADS); start < count; start += stride) {
        const int64 index = start + threadIdx.x;
        const float score = index < count ? scores[index] : 0.0f;
        const bool counted = index < count && !is_nan(score);
        const uint32 key = order_key(score);
        uint32 bin = counted ? bin_of_key(key, prefix, num_classes) : NO_CELL;
        if (HIGH) {
            const uint32 slot = bin == BIN_OF_ZERO ? WINDOW : bin - WINDOW_START;
            if (slot <= WINDOW && bin != WINDOW_START + WINDOW) {
                atomicAdd(&window[slot], 1u);
                bin = NO_CELL;
            }
        }
        count_together(counts, bin != NO_CELL ? pooled + bin : NO_CELL);
        if (classes == nullptr) continue;
        const int row = counted ? row_of_class(classes, class_code, index, num_classes) : -1;
        const uint32 own = row >= 0 ? bin_of_key(key, prefix, row) : NO_CELL;
        count_together(counts, own != NO_CELL ? static_cast<uint32>(row) * BINS + own : NO_CELL);
    }
    if (HIGH) {
        __syncthreads();
        for (uint32 slot = threadIdx.x; slot <= WINDOW; slot += THREADS) {
            const uint32 bin = slot == WINDOW ? BIN_OF_ZERO : WINDOW_START + slot;
            if (window[slot] > 0) atomicAdd(&counts[pooled + bin], static_cast<uint64>(window[slot]));
        }
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

// As score_counts, but adds each score's weight, as an integer: a sum of floats would depend on the order.
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
        if (pooled != NO_CELL) atomicAdd(&sums[static_cast<int64>(num_classes) * BINS + pooled], weight);
        const int row = row_of_class(classes, class_code, index, num_classes);
        const uint32 bin = row >= 0 ? bin_of_key(key, prefix, row) : NO_CELL;
        if (bin != NO_CELL) atomicAdd(&sums[static_cast<int64>(row) * BINS + bin], weight);
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

// Position of a rank in the running sum of the values of a block's threads.
template <typename T>
struct Position {
    int thread;  // the first whose running sum reaches the rank
    T before;    // the sum before it
    T total;     // the sum of all
};

// All threads of the block call it; a rank beyond the total is the total.
template <typename T>
__device__ __forceinline__ Position<T> find_rank(T value, T rank) {
    __shared__ T values[THREADS];
    __shared__ Position<T> position;
    values[threadIdx.x] = value;
    if (threadIdx.x == 0) position = {0, 0, 0};
    __syncthreads();
    // Every thread adds in the same order, so adjacent sums agree exactly, also in floating point.
    T before = 0, total = 0;
    for (uint32 t = 0; t < THREADS; ++t) {
        before = t == threadIdx.x ? total : before;
        total += values[t];
    }
    rank = min(rank, total);
    if (before < rank && rank <= before + value) position = {static_cast<int>(threadIdx.x), before, total};
    __syncthreads();
    const Position<T> result = position;
    __syncthreads();
    return {result.thread, result.before, total};
}

// Bin of one row that contains the score of a rank, the sum before that bin, and the row's total.
template <typename T>
__device__ __forceinline__ Position<T> find_bin(const T* row, T rank) {
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
    const Position<T> outer = find_rank<T>(chunks[threadIdx.x], rank);
    const T within = min(rank, outer.total) - outer.before;
    const Position<T> inner = find_rank<T>(row[outer.thread * CHUNK + threadIdx.x], within);
    return {outer.thread * CHUNK + inner.thread, outer.before + inner.before, outer.total};
}

// The bin that holds the k-th score of each row, and the rank inside that bin.
//
//   counts  (rows, 65536) uint64 or float64
//   ranks   (rows,) from 1, of the same type
//   prefix  (rows,) bin, -1 if the rank is beyond the row's total
//   within  (rows,) rank inside the bin; the rank itself if prefix is -1
//
// One block per row.
template <typename T>
__global__ void __launch_bounds__(THREADS) select_prefix(const T* counts, const T* ranks, int64* prefix, T* within) {
    const T rank = ranks[blockIdx.x];
    const Position<T> bin = find_bin<T>(counts + blockIdx.x * static_cast<int64>(BINS), rank);
    if (threadIdx.x != 0) return;
    const bool inside = rank <= bin.total;
    prefix[blockIdx.x] = inside ? bin.thread : -1;
    within[blockIdx.x] = inside ? rank - bin.before : rank;
}

// The k-th score of each row from the second pass's counts.
//
//   counts  (rows, 65536) of the low halves under prefix
//   prefix, within  of select_prefix
//   scores  (rows,) float32; +inf if prefix is -1, NaN if the bin holds fewer scores than the rank inside it
//
// One block per row.
template <typename T>
__global__ void __launch_bounds__(THREADS)
    kth_score(const T* counts, const int64* prefix, const T* within, float* scores) {
    const T rank = within[blockIdx.x];
    const int64 high = prefix[blockIdx.x];
    const Position<T> bin = find_bin<T>(counts + blockIdx.x * static_cast<int64>(BINS), rank);
    if (threadIdx.x != 0) return;
    // Sums of weights differ in the last bit between the passes; a rank past the end means the bin's last score.
    const bool weighted = static_cast<T>(0.5) != static_cast<T>(0);
    const bool inside = bin.total > 0 && (weighted || rank <= bin.total);
    const uint32 key = static_cast<uint32>(high) << 16 | static_cast<uint32>(bin.thread);
    scores[blockIdx.x] = high < 0 ? infinity() : inside ? value_of_key(key) : not_a_number();
}

// ---- quantiles of positions --------------------------------------------------------------------------------------

// The conformal threshold of every position of a map.
//
//   scores    (maps, positions) float32, NaN for none
//   ranks     (maps + 1,) conformal rank of n scores, n + 1 for an infinite threshold
//   fallback  value of positions without a score
//   quantile  (positions,) float32
//
// One thread per position: eight sweeps over its scores, each of which determines four bits of the key of the k-th one.
// Adjacent threads read adjacent scores; each counts in its own column of shared memory.
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
        int number = 0;
        for (int map = 0; map < maps; ++map) {
            const float score = scores[map * positions + position];
            const uint32 candidate = order_key(score);
            // The digits known so far; a shift by 32 is not defined, so the first sweep shifts twice.
            if (is_nan(score) || (candidate >> shift >> 4) != (key >> shift >> 4)) continue;
            ++tally[candidate >> shift & 15][threadIdx.x];
            ++number;
        }
        if (shift == 28) {
            rank = ranks[number];
            if (number == 0 || rank > number) {
                quantile[position] = number == 0 ? fallback : infinity();
                return;
            }
        }
        uint32 digit = 0;
        while (rank > tally[digit][threadIdx.x]) rank -= tally[digit++][threadIdx.x];
        key |= digit << shift;
    }
    quantile[position] = value_of_key(key);
}
