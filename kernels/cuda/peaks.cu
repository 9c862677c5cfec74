// Local maxima of maps, as scikit-image 0.26 finds them.
//
// Instantiations: map_extremes, zero_padded_maximum, peak_candidates, settle_peaks, select_peaks.
//
// extremes -> candidates (one bit per pixel) -> spacing -> order and output. All sizes are known in advance, so the host
// never waits. Values are compared as order-preserving keys.
//
// Two unequal candidates are never within min_distance of each other, since the lower one is not the maximum of its
// window. The greedy spacing therefore only decides between equal values, by raster order.

#include "common.cuh"

// Key of NaN: the lowest key of a map that contains NaN.
constexpr uint32 NOT_A_NUMBER = 0;

// Result of map_extremes for a map: highest is the key of the maximum above the inverted index of its first pixel; the
// lowest key is inverted, so that both grow from 0.
struct Extremes {
    uint64 highest;
    uint64 inverted_lowest;

    __device__ uint32 maximum() const { return static_cast<uint32>(highest >> 32); }
    __device__ uint32 minimum() const { return ~static_cast<uint32>(inverted_lowest); }
    __device__ uint32 first_maximum() const { return ~static_cast<uint32>(highest); }
};

__device__ __forceinline__ Extremes extremes_of_map(const uint64* extremes, int64 map) {
    return {extremes[2 * map], extremes[2 * map + 1]};
}

// Finds the extremes of each map.
//
//   maps      (N, pixels) float32, fewer than 2^32 pixels
//   extremes  (N, 2) uint64, starts at 0: highest and inverted_lowest
//
// Grid (parts, N).
__global__ void __launch_bounds__(256) map_extremes(const float* maps, int64 pixels, uint64* extremes) {
    const float* map = maps + blockIdx.y * pixels;
    uint64 highest = 0, inverted_lowest = 0;
    const int64 stride = static_cast<int64>(gridDim.x) * 256;
    for (int64 index = blockIdx.x * 256ll + threadIdx.x; index < pixels; index += stride) {
        const float value = map[index];
        const uint32 key = is_nan(value) ? NOT_A_NUMBER : order_key(value);
        highest = max(highest, static_cast<uint64>(key) << 32 | ~static_cast<uint32>(index));
        inverted_lowest = max(inverted_lowest, static_cast<uint64>(~key));
    }
    for (int step = 16; step > 0; step /= 2) {
        highest = max(highest, __shfl_xor_sync(ALL_LANES, highest, step));
        inverted_lowest = max(inverted_lowest, __shfl_xor_sync(ALL_LANES, inverted_lowest, step));
    }
    if (threadIdx.x % 32 == 0) {
        atomicMax(&extremes[2 * blockIdx.y], highest);
        atomicMax(&extremes[2 * blockIdx.y + 1], inverted_lowest);
    }
}

// Computes the maximum of the 3 x 3 window around each pixel, with zeros beyond the map (the filter of the S2C code).
//
//   maps      (N, height, width) float32
//   filtered  (N, height, width) float32
//
// Blocks of 32 x 8 pixels; grid (columns of blocks, rows of blocks, N).
__global__ void __launch_bounds__(256)
    zero_padded_maximum(const float* maps, float* filtered, int height, int width) {
    const int row = blockIdx.y * blockDim.y + threadIdx.y, column = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= height || column >= width) return;
    const int64 start = static_cast<int64>(blockIdx.z) * height * width;
    uint32 highest = 0;
    for (int r = row - 1; r <= row + 1; ++r)
        for (int c = column - 1; c <= column + 1; ++c) {
            const bool inside = r >= 0 && r < height && c >= 0 && c < width;
            highest = max(highest, order_key(inside ? maps[start + static_cast<int64>(r) * width + c] : 0.0f));
        }
    filtered[start + static_cast<int64>(row) * width + column] = value_of_key(highest);
}

// The larger of the absolute threshold (default: the minimum) and the relative one, as a key.
__device__ __forceinline__ uint32 threshold_key(const Extremes& extremes, bool has_absolute, float absolute,
                                                bool has_relative, float relative) {
    const uint32 key = has_absolute ? order_key(absolute) : extremes.minimum();
    if (!has_relative) return key;
    // 0 times an infinite maximum is NaN, and is ignored.
    const float product = relative * value_of_key(extremes.maximum());
    return is_nan(product) ? key : max(key, order_key(product));
}

// Pixels that are the maximum of their window, above the threshold and inside the border.
//
//   maps        (N, height, width) float32
//   extremes    (N, 2) of map_extremes
//   distance    radius of the window, clipped to the map; at least 1
//   border_*    rows and columns at each side without a candidate
//   candidates  (N, height, words) uint32, one bit per pixel, words = ceil(width / 32)
//
// A warp processes 32 pixels of a row. Few pixels pass the threshold and are not below their eight neighbors; the whole
// warp then searches the window of such a pixel. Blocks of 32 x 8 pixels; grid (words, rows of blocks, N).
__global__ void __launch_bounds__(256)
    peak_candidates(const float* maps, const uint64* extremes, int height, int width, int distance,
                    bool has_absolute, float absolute, bool has_relative, float relative, int border_rows,
                    int border_columns, uint32* candidates) {
    const int lane = threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y, column = blockIdx.x * 32 + lane;
    if (row >= height) return;  // whole warps
    const float* map = maps + static_cast<int64>(blockIdx.z) * height * width;
    const Extremes range = extremes_of_map(extremes, blockIdx.z);

    const bool single = static_cast<int64>(height) * width == 1;
    const bool constant = range.minimum() == range.maximum() && !single;
    uint32 key = 0;
    bool alive = column < width && range.minimum() != NOT_A_NUMBER && !constant && row >= border_rows &&
                 row < height - border_rows && column >= border_columns && column < width - border_columns;
    if (alive) {
        key = order_key(map[static_cast<int64>(row) * width + column]);
        alive = key > threshold_key(range, has_absolute, absolute, has_relative, relative);
    }
    if (alive && !single)
        for (int r = max(row - 1, 0); r <= min(row + 1, height - 1); ++r)
            for (int c = max(column - 1, 0); c <= min(column + 1, width - 1); ++c)
                alive = alive && order_key(map[static_cast<int64>(r) * width + c]) <= key;

    uint32 left = single ? 0 : __ballot_sync(ALL_LANES, alive);
    uint32 beaten = 0;
    while (left != 0) {
        const int owner = __ffs(left) - 1;
        left &= left - 1;
        const uint32 mine = __shfl_sync(ALL_LANES, key, owner);
        const int center = column - lane + owner;
        const int top = max(row - distance, 0), bottom = min(row + distance, height - 1);
        const int first = max(center - distance, 0), last = min(center + distance, width - 1);
        for (int r = top; r <= bottom; ++r) {
            bool higher = false;
            for (int c = first + lane; c <= last; c += 32)
                higher = higher || order_key(map[static_cast<int64>(r) * width + c]) > mine;
            if (__any_sync(ALL_LANES, higher)) {
                beaten |= 1u << owner;
                break;
            }
        }
    }
    const uint32 bits = __ballot_sync(ALL_LANES, alive) & ~beaten;
    if (lane == 0) candidates[(static_cast<int64>(blockIdx.z) * height + row) * gridDim.x + blockIdx.x] = bits;
}

// Returns true if any of the bits first..last of a row is set.
__device__ __forceinline__ bool any_bit(const uint32* row, int first, int last) {
    for (int word = first / 32; word <= last / 32; ++word) {
        uint32 bits = row[word];
        if (word == first / 32) bits &= ALL_LANES << first % 32;
        if (word == last / 32) bits &= ALL_LANES >> (31 - last % 32);
        if (bits != 0) return true;
    }
    return false;
}

// Returns true if a bit is set among the pixels before (row, column) in raster order and closer than distance.
__device__ __forceinline__ bool any_before(const uint32* bits, int words, int row, int column, int width,
                                           int distance) {
    const int first = max(column - distance + 1, 0), last = min(column + distance - 1, width - 1);
    for (int r = max(row - distance + 1, 0); r < row; ++r)
        if (any_bit(bits + static_cast<int64>(r) * words, first, last)) return true;
    return column > first && any_bit(bits + static_cast<int64>(row) * words, first, column - 1);
}

// Greedy spacing of a map's candidates by rounds: a candidate with an accepted one before it is dropped, one with
// nothing before it is accepted, the others wait. A round reads one pair of bit maps and writes the other.
//
// Returns the accepted bits. All threads of the block call it.
__device__ __forceinline__ const uint32* space_candidates(const uint32* candidates, uint32* accepted, uint32* waiting,
                                                          uint32* next_accepted, uint32* next_waiting, int height,
                                                          int width, int distance) {
    const int words = (width + 31) / 32;
    const int64 size = static_cast<int64>(height) * words;
    for (int64 i = threadIdx.x; i < size; i += blockDim.x) {
        accepted[i] = 0;
        waiting[i] = candidates[i];
    }
    __syncthreads();
    for (;;) {
        bool unsettled = false;
        for (int64 i = threadIdx.x; i < size; i += blockDim.x) {
            const int row = static_cast<int>(i / words), start = static_cast<int>(i % words) * 32;
            uint32 settled = 0, taken = 0;
            for (uint32 left = waiting[i]; left != 0; left &= left - 1) {
                const int bit = __ffs(left) - 1;
                if (any_before(accepted, words, row, start + bit, width, distance))
                    settled |= 1u << bit;
                else if (!any_before(waiting, words, row, start + bit, width, distance))
                    settled |= 1u << bit, taken |= 1u << bit;
            }
            next_accepted[i] = accepted[i] | taken;
            next_waiting[i] = waiting[i] & ~settled;
            unsettled = unsettled || next_waiting[i] != 0;
        }
        const bool again = __syncthreads_or(unsettled);
        uint32* swap = accepted;
        accepted = next_accepted, next_accepted = swap;
        swap = waiting;
        waiting = next_waiting, next_waiting = swap;
        if (!again) return accepted;
    }
}

// Sorts size keys in place, ascending: a bitonic network whose comparators all point one way, so that imaginary infinite
// keys beyond the end never move. All threads of the block call it.
__device__ __forceinline__ void sort_keys(uint64* keys, int64 size) {
    for (int64 run = 2; run < 2 * size; run *= 2)
        for (int64 step = run / 2; step > 0; step /= 2) {
            for (int64 pair = threadIdx.x; 2 * pair < size + run; pair += blockDim.x) {
                const int64 low = pair / step * step * 2 + pair % step;
                const int64 high = step == run / 2 ? low ^ (run - 1) : low + step;
                if (high < size && keys[low] > keys[high]) {
                    const uint64 swap = keys[low];
                    keys[low] = keys[high], keys[high] = swap;
                }
            }
            __syncthreads();
        }
}

// The way in which select_peaks turns the spaced candidates into peaks.
enum PeakMode {
    PLAIN,           // unchanged
    APPEND_MAXIMUM,  // followed by the map's first maximum, if it is not among them
    OFFICIAL,        // as the S2C code: those at which the unfiltered map exceeds keep_above; the map's first maximum
                     // replaces the strongest
};

// Adds the peaks of a word of bits to the keys of a map, in any order.
struct KeyList {
    const float* map;
    const float* unfiltered;  // OFFICIAL only, else null
    float keep_above;
    uint64* keys;
    uint32* count;

    __device__ void add(uint32 bits, int64 row, int64 first_column, int width) const {
        for (; bits != 0; bits &= bits - 1) {
            const uint32 pixel = static_cast<uint32>(row * width + first_column + __ffs(bits) - 1);
            if (unfiltered != nullptr && order_key(unfiltered[pixel]) <= order_key(keep_above)) continue;
            keys[atomicAdd(count, 1u)] = static_cast<uint64>(~order_key(map[pixel])) << 32 | pixel;
        }
    }
};

// First round of the spacing, which settles every map but those with equal candidates close to each other: a candidate
// with none before it is a peak.
//
//   maps, candidates, unfiltered, keep_above, keys, key_capacity  as select_peaks
//   counts     (N,) uint32 number of keys; starts at 0
//   unsettled  (N,) uint32, 1 if other candidates are left; starts at 0
//
// One thread per word of 32 pixels; grid (parts, N).
__global__ void __launch_bounds__(256)
    settle_peaks(const float* maps, const uint32* candidates, const float* unfiltered, float keep_above, int height,
                 int width, int distance, uint64* keys, int64 key_capacity, uint32* counts, uint32* unsettled) {
    const int words = (width + 31) / 32;
    const int64 size = static_cast<int64>(height) * words, map = blockIdx.y;
    const int64 i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= size) return;
    const uint32* bits = candidates + map * size;
    const int row = static_cast<int>(i / words), start = static_cast<int>(i % words) * 32;
    uint32 peaks = bits[i];
    if (distance > 1)
        for (uint32 left = peaks; left != 0; left &= left - 1) {
            const int bit = __ffs(left) - 1;
            if (!any_before(bits, words, row, start + bit, width, distance)) continue;
            peaks &= ~(1u << bit);
            atomicMax(&unsettled[map], 1u);
        }
    const int64 pixels = map * height * width;
    const KeyList list = {maps + pixels, unfiltered == nullptr ? nullptr : unfiltered + pixels, keep_above,
                          keys + map * key_capacity, counts + map};
    list.add(peaks, row, start, width);
}

// Writes the peaks of each map in order: value descending, then raster order.
//
//   maps         (N, height, width) float32 in which the candidates were found
//   candidates   (N, height, words) uint32
//   bit_maps     (4, N, height, words) uint32 scratch; not used if distance is below 2
//   keys         (N, key_capacity) uint64 of settle_peaks; room for every spaced candidate that a map can have
//   counts, unsettled  (N,) of settle_peaks
//   unfiltered   (N, height, width) float32 before the filter, OFFICIAL only, else null
//   extremes     (N, 2) of the unfiltered maps
//   num_peaks    number of peaks to keep, before the capacity limits it
//   coordinates  (N, capacity, 2) int64 (row, column), -1 from count on
//   peaks        (N,) int64 number written;  overflow (N,) bool: there are more than the capacity
//
// One block per map: it sorts the keys, after it has finished the spacing of a map that is not settled.
__global__ void __launch_bounds__(512)
    select_peaks(const float* maps, const uint32* candidates, uint32* bit_maps, uint64* keys, int64 key_capacity,
                 const uint32* counts, const uint32* unsettled, const float* unfiltered, const uint64* extremes, float keep_above, int mode, int64 count, int height,
                 int width, int distance, int64 num_peaks, int64 capacity, int64* coordinates, int64* peaks,
                 bool* overflow) {
    __shared__ uint32 num_keys;
    const int words = (width + 31) / 32;
    const int64 size = static_cast<int64>(height) * words, start = blockIdx.x * size;
    const int64 pixels = static_cast<int64>(height) * width, first_pixel = blockIdx.x * pixels;
    const bool open = unsettled[blockIdx.x] != 0;
    if (threadIdx.x == 0) num_keys = open ? 0 : counts[blockIdx.x];
    __syncthreads();

    // Threads append in any order; sorting makes the order unique.
    keys += blockIdx.x * key_capacity;
    if (open) {
        uint32* work[4];
        for (int i = 0; i < 4; ++i) work[i] = bit_maps + i * count * size + start;
        const uint32* spaced =
            space_candidates(candidates + start, work[0], work[1], work[2], work[3], height, width, distance);
        const KeyList list = {maps + first_pixel, mode == OFFICIAL ? unfiltered + first_pixel : nullptr, keep_above,
                              keys, &num_keys};
        for (int64 i = threadIdx.x; i < size; i += blockDim.x)
            list.add(spaced[i], i / words, i % words * 32, width);
        __syncthreads();
    }
    const int64 available = num_keys;
    sort_keys(keys, available);

    const Extremes range = extremes_of_map(extremes, blockIdx.x);
    const bool numbers = range.minimum() != NOT_A_NUMBER;
    const uint32 maximum = range.first_maximum();
    bool among = false;
    if (mode == APPEND_MAXIMUM)
        for (int64 i = threadIdx.x; i < available; i += blockDim.x) among |= static_cast<uint32>(keys[i]) == maximum;
    const bool append = !__syncthreads_or(among) && mode == APPEND_MAXIMUM && numbers;
    const bool replace = mode == OFFICIAL && numbers;
    int64 total = numbers ? min(available, num_peaks) : 0;
    if (append) ++total;
    if (replace) total = max(total, 1ll);

    coordinates += blockIdx.x * capacity * 2;
    for (int64 i = threadIdx.x; i < capacity; i += blockDim.x) {
        int64 row = -1, column = -1;
        if (i < total) {
            const bool take_maximum = (replace && i == 0) || (append && i == total - 1);
            const uint32 pixel = take_maximum ? maximum : static_cast<uint32>(keys[i]);
            row = pixel / width;
            column = pixel % width;
        }
        coordinates[2 * i] = row;
        coordinates[2 * i + 1] = column;
    }
    if (threadIdx.x == 0) {
        peaks[blockIdx.x] = min(total, capacity);
        overflow[blockIdx.x] = total > capacity;
    }
}
