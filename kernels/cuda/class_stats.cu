// Fused decode of class scores: upsampling, activation, grouping, top classes, prediction set and label in one pass.
//
// Instantiations: class_stats<T, A, W, M, P, Q>
//   T     fp16, bf16, float: element type of the scores
//   A     SOFTMAX, SIGMOID, NONE: activation
//   W     STRIDED  classes in order, any strides
//         VECTOR   classes in order, contiguous: four of them in one load
//         GROUPED  classes sorted by target, any strides
//   M     TOP      only the top class: no class is exponentiated; classes whose four corners are too low are skipped
//         SUMS     also the masses of the others: for scores of softmax, share and dispersion
//         SECONDS  also the second class: for its outputs and for prediction sets
//   P, Q  rows and columns of output pixels per thread, all between the same four pixels of the scores: (4, 2) for
//         maps that are enlarged, else (1, 1)
//
// A source cell's four corners are loaded, widened and interpolated along the rows once for the P x Q pixels of a
// thread. Per class and pixel that leaves the interpolation down the column, one exponential and two sums.
//
// Sources: half-pixel bilinear upsampling as torch's interpolate(align_corners=False); prediction sets of ConformalSAM
// (the nonconformity score of a class is the mass of all others); residual dispersion of CSL.

#include "class_tally.cuh"

enum Rule { ARGMAX, FOREGROUND, SINGLE, AGREE };

constexpr uint16 UNREACHED = 0xffff;
constexpr uint32 NO_CLASS = 0xffff;

// Finished statistics of one pixel.
template <Activation A, bool GROUPS>
struct Result {
    float shift, top, second, mass, rest, squares, total, inverse;
    int top_class, second_class;  // -1 for none

    template <bool HAS_SUMS, int N>
    __device__ __forceinline__ Result(const Pixels<HAS_SUMS, N>& pixels, int i) {
        top = pixels.value(TOP_RANK, i);
        second = pixels.value(SECOND_RANK, i);
        const uint32 classes = pixels.at(CLASSES, i);
        top_class = (classes & 0xffff) == NO_CLASS ? -1 : static_cast<int>(classes & 0xffff);
        second_class = classes >> 16 == NO_CLASS ? -1 : static_cast<int>(classes >> 16);
        if constexpr (HAS_SUMS) {
            shift = pixels.value(SHIFT, i);
            mass = pixels.value(MASS, i);
            rest = pixels.value(REST, i);
            squares = pixels.value(SQUARES, i);
        } else {
            mass = A == SIGMOID ? sigmoid(top) : top;
            shift = rest = squares = 0;
        }
        total = mass + rest;
        inverse = total > 0 ? 1 / total : 0;
    }

    __device__ __forceinline__ float score(float own_mass) const { return A == SOFTMAX ? own_mass * inverse : own_mass; }

    // Variance of the other classes' shares about their mean, from the masses that are not the top's; the official
    // form also counts the top's empty slot.
    __device__ __forceinline__ float dispersion(int scored, bool exact) const {
        const float others = static_cast<float>(scored - 1), mean = rest * inverse / others;
        const float variance = fmaxf(squares * inverse * inverse / others - mean * mean, 0.0f);
        return exact ? variance : fmaf(mean, mean / others, variance);
    }
};

// Rank of a class at a pixel, begun or continued with one of its model classes; shift is the pixel's.
template <Activation A, int Q>
__device__ __forceinline__ float rank_with(float rank, const Rows<Q>& rows, int q, float weight, bool begins,
                                           float shift) {
    if constexpr (A == SOFTMAX) return (begins ? 0 : rank) + fast_exp2(rows.power(q, weight, shift));
    const float value = rows.value(q, weight);
    if constexpr (A == SIGMOID) return begins ? value : fmaxf(rank, value);
    return begins ? value : rank + value;
}

template <Activation A>
__device__ __forceinline__ float mass_of_rank(float rank) {
    return A == SIGMOID ? sigmoid(rank) : rank;
}

// Nonconformity score of a class other than the top one by its rank: the mass of all others over the total. The top
// class's is its rest over the total, which total - mass would lose to rounding. Calibration and prediction sets both
// call it.
template <Activation A>
__device__ __forceinline__ float nonconformity(float rank, float total, float inverse) {
    if constexpr (A == SIGMOID) return sigmoid(-rank);
    if constexpr (A == NONE) return 1 - rank;
    return (total - rank) * inverse;
}

template <Activation A, bool GROUPS>
__device__ __forceinline__ float nonconformity_of_top(const Result<A, GROUPS>& result) {
    if constexpr (A == SOFTMAX) return result.rest * result.inverse;
    return nonconformity<A>(result.top, result.total, result.inverse);
}

// Value (of groups: rank) below which no class but the top one has a score of at most limit; the margins are those of
// rounding.
template <Activation A, bool GROUPS>
__device__ __forceinline__ float lowest_value(float limit, float shift, float total) {
    if constexpr (A == NONE) return limit < infinity() ? 1 - limit - 1e-5f * (1 + fabsf(limit)) : -infinity();
    if constexpr (A == SIGMOID) {
        if (!(limit < 1)) return -infinity();
        return limit < 1e-30f ? 60.0f : logf((1 - limit) / limit) - 1e-3f * (1 + fabsf(logf(limit)));
    }
    const float needed = total * ((1 - limit) * 0.999f - 1e-6f);
    if (!(needed > 0)) return -infinity();
    if constexpr (GROUPS) return needed;
    const float value = (log2f(needed) - shift) / LOG2E;
    return value - 1e-3f * (1 + fabsf(value));
}

// ---- prediction sets ---------------------------------------------------------------------------------------------

// The prediction set of a pixel, packed: members in the low 16 bits of count.
constexpr uint32 HAS_TOP = 1u << 16, HAS_BACKGROUND = 1u << 17;

template <bool HAS_SUMS, int N>
__device__ __forceinline__ void add_member(const Pixels<HAS_SUMS, N>& pixels, int i, int scored, float rank,
                                           int background, uint32 flags) {
    pixels.at(Pixels<HAS_SUMS, N>::COUNT, i) += 1 | flags | (scored == background ? HAS_BACKGROUND : 0);
    if (scored == background || !(rank > pixels.value(BEST_RANK, i))) return;
    pixels.set(BEST_RANK, i, rank);
    pixels.at(TOP_AND_BEST, i) = (pixels.at(TOP_AND_BEST, i) & 0xffff) | static_cast<uint32>(scored) << 16;
}

// Class that the rule selects from the set, -1 for none.
__device__ __forceinline__ int chosen_by_rule(int rule, uint32 count, uint32 top_and_best, int background) {
    const int top = static_cast<int>(top_and_best & 0xffff), best = static_cast<int>(top_and_best >> 16);
    const int member = best != NO_CLASS ? best : count & HAS_BACKGROUND ? background : -1;
    if (rule == ARGMAX) return count & HAS_TOP ? top : -1;
    if (rule == FOREGROUND) return member;
    if ((count & 0xffff) != 1) return -1;
    return rule == SINGLE || member == top ? member : -1;
}

// ---- kernel ------------------------------------------------------------------------------------------------------

// Statistics of every pixel of N maps of (height, width), from scores at their own resolution.
//
//   scores, stride_*   (N, channels, source height, source width) in any order; strides in elements
//   class_bytes        stride of the classes, in bytes
//   strips             (row_strips + column_strips, 4) int32, as Strip: of rows with counts up to P, then of columns
//                      with counts up to Q
//   weights            (height + width,) float32: of the upper source row of each row, then of each column
//   order, first       classes sorted by target, GROUPED only
//   scored, targets    classes with a score Ke; classes that can be emitted K
//   thresholds, per_*  float32 with stride 0 along an axis on which they do not depend; null: no prediction set
//   rule, background   background is -1 for none
//   counts_members     the rule or set_size needs the members of the prediction sets beside the top class; SECONDS only
//   exact              dispersion without the official form's extra term
//   truth, truth_code  (N, height, width) integers; null without true_score
//
// Outputs (N, height, width), null if not requested: label as uint8 or uint16; the others as ClassStats.
//
// One thread per strip of rows and strip of columns; grid (blocks, 1, N).
template <typename T, Activation A, Walk W, Mode M, int P, int Q>
__global__ void __launch_bounds__(THREADS, P == 1 ? 6 : 4)
    class_stats(const T* scores, int64 stride_map, int class_bytes, int64 stride_row, int64 stride_column,
                int channels, int height, int width, const int* strips, int row_strips, int column_strips,
                const float* weights, const int* order, const int* first, int scored, int targets,
                const float* thresholds, int64 per_class, int64 per_row, int64 per_column, int rule, int background,
                bool counts_members, int ignore, bool exact, const void* truth, int truth_code, uint8* label, uint16* wide_label,
                uint16* top, float* confidence, float* share, float* dispersion, uint16* second,
                float* second_confidence, uint16* set_size, float* true_score) {
    constexpr int N = P * Q;
    constexpr bool GROUPS = W == GROUPED, HAS_SUMS = M != TOP;
    __shared__ float highest[THREADS / 32];
    __shared__ uint32 words[Pixels<HAS_SUMS, N>::WORDS][N][THREADS];
    const int64 map = blockIdx.z;
    const int thread = threadIdx.x;

    if (M == SECONDS && counts_members && per_class != 0) {
        float bound = -infinity();
        for (int i = thread; i < scored; i += THREADS) bound = fmaxf(bound, thresholds[i * per_class]);
        for (int step = 16; step > 0; step /= 2) bound = fmaxf(bound, __shfl_xor_sync(ALL_LANES, bound, step));
        if (thread % 32 == 0) highest[thread / 32] = bound;
        __syncthreads();
    }

    const int64 index = blockIdx.x * static_cast<int64>(THREADS) + thread;
    if (index >= static_cast<int64>(row_strips) * column_strips) return;
    const int row_strip = static_cast<int>(index / column_strips);
    const int column_strip = static_cast<int>(index - static_cast<int64>(row_strip) * column_strips);
    const Strip rows = load_strip(strips, row_strip), columns = load_strip(strips, row_strips + column_strip);
    float weights_y[P], weights_x[Q];
    for (int p = 0; p < P; ++p) weights_y[p] = weights[rows.start + min(p, rows.count - 1)];
    for (int q = 0; q < Q; ++q) weights_x[q] = weights[height + columns.start + min(q, columns.count - 1)];

    const T* corner = scores + map * stride_map + rows.lower * stride_row + columns.lower * stride_column;
    const int64 down = rows.step * stride_row, across = columns.step * stride_column;
    const Cell<T> cell = {{corner, corner + across, corner + down, corner + across + down}, class_bytes};
    const Classes classes = {channels, order, first, scored};

    const Pixels<HAS_SUMS, N> pixels = {words};
    {
        Tally<A, GROUPS, M, N> tally(first_class<W>(cell, classes), weights_x, weights_y);
        walk<W, N>(cell, classes, [&](const Corners& corners, int target, bool begins, bool ends) {
            tally.add(corners, weights_x, weights_y, target, begins, ends);
        });
        for (int i = 0; i < N; ++i) tally.save(i, pixels, i);
    }
    if constexpr (Tally<A, GROUPS, M, N>::MASSES && N > 1) {
#pragma unroll 1
        for (int i = 0; i < N; ++i) {
            if (!(pixels.value(MASS, i) < FAINT)) continue;
            VISIT(FAINT_PIXEL, i);
            const float weight_x[1] = {weights[height + columns.start + min(i % Q, columns.count - 1)]};
            const float weight_y[1] = {weights[rows.start + min(i / Q, rows.count - 1)]};
            Tally<A, GROUPS, M, 1> tally(first_class<W>(cell, classes), weight_x, weight_y);
            walk<W, 1>(cell, classes, [&](const Corners& corners, int target, bool begins, bool ends) {
                tally.add(corners, weight_x, weight_y, target, begins, ends);
            });
            tally.save(0, pixels, i);
        }
    }

    float highest_limit = 0;
    if (M == SECONDS && counts_members && per_class != 0) {
        highest_limit = highest[0];
        for (int i = 1; i < THREADS / 32; ++i) highest_limit = fmaxf(highest_limit, highest[i]);
    }
    float lowest_of_cell = infinity();
#pragma unroll 1
    for (int i = 0; i < N; ++i) {
        const int row = rows.start + i / Q, column = columns.start + i % Q;
        if (i / Q >= rows.count || i % Q >= columns.count) {
            pixels.set(LOWEST, i, infinity());
            continue;
        }
        const Result<A, GROUPS> result(pixels, i);
        const int64 pixel = (map * height + row) * width + column;
        const bool finite = result.top_class >= 0, has_second = result.second_class >= 0;
        if (top != nullptr) top[pixel] = finite ? result.top_class : UNREACHED;
        if (second != nullptr) second[pixel] = has_second ? result.second_class : UNREACHED;
        if constexpr (A != SOFTMAX || HAS_SUMS) {
            if (confidence != nullptr) confidence[pixel] = finite ? result.score(result.mass) : 0;
            if (second_confidence != nullptr)
                second_confidence[pixel] =
                    has_second ? result.score(mass_of_rank<A>(result.second)) : 0;
        }
        if constexpr (HAS_SUMS) {
            const bool shared = finite && result.total > 0;
            if (share != nullptr) share[pixel] = shared ? result.mass * result.inverse : 0;
            if (dispersion != nullptr) dispersion[pixel] = shared ? result.dispersion(scored, exact) : 0;
        }
        if (true_score != nullptr) {
            const int64 actual = load_integer(truth, truth_code, pixel);
            float score = not_a_number();
            if (actual >= 0 && actual < scored && actual != ignore) {
                const int target = static_cast<int>(actual);
                const int begin = GROUPS ? first[target] : target, end = GROUPS ? first[target + 1] : target + 1;
                score = infinity();
                if (finite && target == result.top_class) {
                    score = nonconformity_of_top(result);
                } else if (finite && begin < end) {
                    const float weight_x[1] = {weights[height + column]};
                    float rank = 0;
#pragma unroll 1
                    for (int k = begin; k < end; ++k) {
                        Pack<T, 1> corners[4];
                        cell.template load<1>(GROUPS ? order[k] : k, corners);
                        const Rows<1> values(Corners(corners, 0), weight_x);
                        rank = rank_with<A>(rank, values, 0, weights[row], k == begin, result.shift);
                    }
                    score = nonconformity<A>(rank, result.total, result.inverse);
                }
            }
            true_score[pixel] = score;
        }
        if (thresholds == nullptr) {
            const int emitted = finite && result.top_class < targets ? result.top_class : ignore;
            if (label != nullptr) label[pixel] = static_cast<uint8>(emitted);
            if (wide_label != nullptr) wide_label[pixel] = static_cast<uint16>(emitted);
            continue;
        }

        // The top class's membership, and whether others may be members: no other class has a lower score than the
        // second one, which for most pixels is beyond every threshold.
        const float* limits = thresholds + row * per_row + column * per_column;
        const float limit = per_class != 0 ? highest_limit : *limits;
        float lowest = infinity();
        if (M == SECONDS && counts_members && has_second) {
            const float score =
                nonconformity<A>(result.second, result.total, result.inverse);
            if (!(score - 1e-3f * fabsf(score) > limit))
                lowest = lowest_value<A, GROUPS>(limit, result.shift, result.total);
        }
        lowest_of_cell = fminf(lowest_of_cell, lowest);
        pixels.set(LOWEST, i, lowest);
        pixels.set(BEST_RANK, i, -infinity());
        pixels.at(TOP_AND_BEST, i) |= NO_CLASS << 16;
        pixels.at(Pixels<HAS_SUMS, N>::COUNT, i) = 0;
        if constexpr (HAS_SUMS) {
            pixels.set(SET_SHIFT, i, result.shift);
            pixels.set(TOTAL, i, result.total);
            pixels.set(INVERSE, i, result.inverse);
        }
        if (finite && nonconformity_of_top(result) <= limits[result.top_class * per_class])
            add_member(pixels, i, result.top_class, result.top, background, HAS_TOP);
    }
    if (thresholds == nullptr) return;

    // Pixels whose set may have further members visit the other classes again, except those too low in the whole cell.
    if (M == SECONDS && lowest_of_cell < infinity()) {
        float group[N] = {};
        walk<W, N>(cell, classes, [&](const Corners& corners, int target, bool begins, bool ends) {
            VISIT(SET_PASS, target);
            const Rows<Q> values(corners, weights_x);
            if (!GROUPS && values.bound() < lowest_of_cell) return;
            VISIT(SET_CLASS, target);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                const float shift = HAS_SUMS ? pixels.value(SET_SHIFT, i) : 0;
                group[i] = rank_with<A>(group[i], values, i % Q, weights_y[i / Q], begins, shift);
                if (!ends) continue;
                if (!((GROUPS ? group[i] : values.value(i % Q, weights_y[i / Q])) >= pixels.value(LOWEST, i))) continue;
                if (static_cast<int>(pixels.at(TOP_AND_BEST, i) & 0xffff) == target) continue;
                const float* limits =
                    thresholds + (rows.start + i / Q) * per_row + (columns.start + i % Q) * per_column;
                const float total = HAS_SUMS ? pixels.value(TOTAL, i) : 0;
                const float inverse = HAS_SUMS ? pixels.value(INVERSE, i) : 0;
                if (nonconformity<A>(group[i], total, inverse) <= limits[target * per_class])
                    add_member(pixels, i, target, group[i], background, 0);
            }
        });
    }
#pragma unroll 1
    for (int i = 0; i < N; ++i) {
        if (i / Q >= rows.count || i % Q >= columns.count) continue;
        const int64 pixel = (map * height + rows.start + i / Q) * width + columns.start + i % Q;
        const uint32 count = pixels.at(Pixels<HAS_SUMS, N>::COUNT, i), classes_of_set = pixels.at(TOP_AND_BEST, i);
        const bool finite = (classes_of_set & 0xffff) != NO_CLASS;
        const int chosen = chosen_by_rule(rule, count, classes_of_set, background);
        const int emitted = finite && chosen >= 0 && chosen < targets ? chosen : ignore;
        if (label != nullptr) label[pixel] = static_cast<uint8>(emitted);
        if (wide_label != nullptr) wide_label[pixel] = static_cast<uint16>(emitted);
        if (set_size != nullptr) set_size[pixel] = finite ? count & 0xffff : 0;
    }
}
