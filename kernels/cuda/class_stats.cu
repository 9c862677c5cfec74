// Fused decode of class scores: upsampling, activation, grouping, top classes, prediction set and label in one pass.
//
// Instantiations: class_stats<T, A, W>
//   T  fp16, bf16, float: element type of the scores
//   A  SOFTMAX, SIGMOID, NONE: activation
//   W  STRIDED  classes in order, any strides
//      VECTOR   classes in order, contiguous: 16 bytes of them in one load
//      GROUPED  classes sorted by target, any strides
//
// Sources: half-pixel bilinear upsampling as torch's interpolate(align_corners=False); prediction sets of ConformalSAM
// (the nonconformity score of a class is the mass of all others); residual dispersion of CSL.

#include "common.cuh"

enum Activation { SOFTMAX, SIGMOID, NONE };
enum Walk { STRIDED, VECTOR, GROUPED };
enum Rule { ARGMAX, FOREGROUND, SINGLE, AGREE };

constexpr int TILE_WIDTH = 32, TILE_HEIGHT = 8, THREADS = TILE_WIDTH * TILE_HEIGHT;
constexpr uint16 UNREACHED = 0xffff;
constexpr float LARGEST = 3.402823466e38f;

// ---- sampling ----------------------------------------------------------------------------------------------------

// Bilinear taps of one output row or column: lower pixel, step to the upper one (0 at the edge), weight of the upper.
struct Tap {
    int lower, step;
    float weight;
};

// Sample i of an axis of length pixels lies at (i + 0.5) * scale + start - 0.5, clamped to the axis.
__device__ __forceinline__ Tap tap_of(int i, double scale, double start, int length) {
    const double position = fmin(fmax((i + 0.5) * scale + start - 0.5, 0.0), length - 1.0);
    const int lower = static_cast<int>(position);
    return {lower, lower + 1 < length ? 1 : 0, static_cast<float>(position - lower)};
}

__device__ __forceinline__ float mix(float a, float b, float weight) { return fmaf(weight, b - a, a); }

// The four pixels around one output pixel, and how to walk their classes.
template <typename T>
struct Corners {
    const T* scores;  // class 0 at the lower row and column
    int64 across, down, per_class;
    float weight_x, weight_y;

    __device__ float sample(int model_class) const {
        const T* at = scores + model_class * per_class;
        const float upper = mix(widen(at[0]), widen(at[across]), weight_x);
        const float lower = mix(widen(at[down]), widen(at[down + across]), weight_x);
        return mix(upper, lower, weight_y);
    }

    // V neighboring classes; the same arithmetic as sample.
    template <int V>
    __device__ void sample_pack(int model_class, float (&values)[V]) const {
        const T* at = scores + model_class;
        const auto a = *reinterpret_cast<const Pack<T, V>*>(at);
        const auto b = *reinterpret_cast<const Pack<T, V>*>(at + across);
        const auto c = *reinterpret_cast<const Pack<T, V>*>(at + down);
        const auto d = *reinterpret_cast<const Pack<T, V>*>(at + down + across);
        for (int i = 0; i < V; ++i) {
            const float upper = mix(widen(a.value[i]), widen(b.value[i]), weight_x);
            const float lower = mix(widen(c.value[i]), widen(d.value[i]), weight_x);
            values[i] = mix(upper, lower, weight_y);
        }
    }
};

// Which model classes make up the scored classes.
struct Classes {
    int channels;      // model classes
    const int* order;  // GROUPED: model classes sorted by scored class
    const int* first;  // GROUPED: (scored + 1,) where each scored class starts in order
    int scored;
};

// Visits the upsampled value of every model class: visit(value, scored class, begins it, ends it).
template <Walk W, typename T, typename Visit>
__device__ __forceinline__ void walk(const Corners<T>& corners, const Classes& classes, Visit visit) {
    if constexpr (W == GROUPED) {
#pragma unroll 1
        for (int target = 0, i = 0; target < classes.scored; ++target) {
            const int begin = i, end = classes.first[target + 1];
#pragma unroll 1
            for (; i < end; ++i) visit(corners.sample(classes.order[i]), target, i == begin, i + 1 == end);
        }
    } else {
        // Several classes at a time keep several loads in flight.
        constexpr int V = W == VECTOR ? 16 / sizeof(T) : 4;
        float values[V];
        int c = 0;
#pragma unroll 1
        for (; c + V <= classes.channels; c += V) {
            if constexpr (W == VECTOR) {
                corners.template sample_pack<V>(c, values);
            } else {
                for (int i = 0; i < V; ++i) values[i] = corners.sample(c + i);
            }
            for (int i = 0; i < V; ++i) visit(values[i], c + i, true, true);
        }
#pragma unroll 1
        for (; c < classes.channels; ++c) visit(corners.sample(c), c, true, true);
    }
}

// ---- scores of one pixel -----------------------------------------------------------------------------------------

__device__ __forceinline__ float sigmoid(float x) {
    const float small = expf(-fabsf(x));
    return (x >= 0 ? 1 : small) / (1 + small);
}

// What one pass over the classes of a pixel leaves. The rank orders the classes as their scores do, also where these
// have saturated: the mass for SOFTMAX, the largest logit for SIGMOID, the sum for NONE.
template <Activation A>
struct Tally {
    float reference = -infinity();  // SOFTMAX: masses are in units of exp(reference)
    float group = 0;              // rank of the class being visited
    float top_rank = 0, second_rank = 0;
    float top_mass = 0, second_mass = 0;
    float rest = 0, squares = 0;  // sum and sum of squares of the masses of all but the top class
    int top = -1, second = -1;
    bool finite = true;

    // Adds a model class to the class being visited. For SOFTMAX in one pass: masses are rescaled only when a value
    // exceeds the reference by so much that they could overflow, which happens a few times per pixel. The classes that
    // tie for the top are always counted in the same units.
    __device__ void add(float value, bool begins) {
        finite = finite && fabsf(value) <= LARGEST;
        if constexpr (A == SOFTMAX) {
            if (begins) group = 0;
            const float above = value - reference;
            const bool rescale = above > 8;
            float mass = expf(rescale ? -above : above);
            if (rescale) {
                group *= mass;
                top_rank *= mass;
                second_rank *= mass;
                rest *= mass;
                squares *= mass * mass;
                reference = value;
                mass = 1;
            }
            group += mass;
        } else if constexpr (A == SIGMOID) {
            group = begins ? value : fmaxf(group, value);
        } else {
            group = begins ? value : group + value;
        }
    }

    // Takes the class that was visited.
    __device__ void close(int scored) {
        const float mass = A == SIGMOID ? sigmoid(group) : group;
        const bool wins = top < 0 || group > top_rank;
        if (wins || second < 0 || group > second_rank) {
            second_rank = wins ? top_rank : group;
            second_mass = wins ? top_mass : mass;
            second = wins ? top : scored;
        }
        const float other = wins ? (A == SIGMOID ? top_mass : top_rank) : mass;
        rest += other;
        squares = fmaf(other, other, squares);
        top_rank = wins ? group : top_rank;
        top_mass = wins ? mass : top_mass;
        top = wins ? scored : top;
    }

    __device__ float mass_of_top() const { return A == SIGMOID ? top_mass : top_rank; }
    __device__ float mass_of_second() const { return A == SIGMOID ? second_mass : second_rank; }
    __device__ float total() const { return mass_of_top() + rest; }
    __device__ float score(float mass) const { return A == SOFTMAX ? mass / total() : mass; }

    // Nonconformity score of a class by its rank: the mass of all others. For the top class that is their own sum,
    // which total - top would lose to rounding. Calibration and prediction sets both take it from here.
    __device__ float nonconformity(int scored, float rank) const {
        if constexpr (A == SIGMOID) return sigmoid(-rank);
        if constexpr (A == NONE) return 1 - rank;
        return (scored == top ? rest : total() - rank) / total();
    }
};

// Rank of a class in the units of a finished tally.
template <Activation A>
__device__ __forceinline__ float rank_with(float rank, float value, bool begins, float reference) {
    if constexpr (A == SOFTMAX) return (begins ? 0 : rank) + expf(value - reference);
    if constexpr (A == SIGMOID) return begins ? value : fmaxf(rank, value);
    return begins ? value : rank + value;
}

// Thresholds of the prediction set: one value, one per class or one per pixel; the strides tell which.
struct Thresholds {
    const float* values;  // at this pixel
    int64 per_class;
    float highest;  // of all classes, at this pixel
};

// The prediction set as far as the rules look at it.
struct PredictionSet {
    int size = 0;
    int best = -1;  // member of the highest rank, the background aside
    float best_rank = 0;
    bool has_background = false, has_top = false;
};

template <Activation A, Walk W, typename T>
__device__ __forceinline__ PredictionSet prediction_set(const Corners<T>& corners, const Classes& classes,
                                                        const Tally<A>& tally, const Thresholds& thresholds,
                                                        int background) {
    PredictionSet set;
    auto consider = [&](int scored, float rank) {
        if (!(tally.nonconformity(scored, rank) <= thresholds.values[scored * thresholds.per_class])) return;
        ++set.size;
        set.has_top = set.has_top || scored == tally.top;
        if (scored == background) {
            set.has_background = true;
        } else if (set.best < 0 || rank > set.best_rank) {
            set.best = scored;
            set.best_rank = rank;
        }
    };
    // No class has a lower score than the second one, the top aside. Most pixels are sure enough that it is beyond
    // every threshold; the margin leaves the pixels at rounding's distance to the exact test.
    const float second = tally.second < 0 ? infinity() : tally.nonconformity(tally.second, tally.second_rank);
    if (second - 1e-3f * fabsf(second) > thresholds.highest) {
        consider(tally.top, tally.top_rank);
        return set;
    }
    float rank = 0;
    walk<W>(corners, classes, [&](float value, int scored, bool begins, bool ends) {
        rank = rank_with<A>(rank, value, begins, tally.reference);
        if (ends) consider(scored, rank);
    });
    return set;
}

// Class that the rule takes from the set, -1 where it takes none.
__device__ __forceinline__ int chosen_by_rule(int rule, const PredictionSet& set, int top, int background) {
    const int member = set.best >= 0 ? set.best : set.has_background ? background : -1;
    if (rule == ARGMAX) return set.has_top ? top : -1;
    if (rule == FOREGROUND) return member;
    if (set.size != 1) return -1;
    return rule == SINGLE || member == top ? member : -1;
}

// Variance of the other classes' shares about their mean, from the masses that are not the top's; the official form
// lets the top's empty slot count.
__device__ __forceinline__ float dispersion_of(float rest, float squares, float total, int scored, bool exact) {
    const float others = static_cast<float>(scored - 1), remainder = rest / total;
    const float mean = remainder / others;
    const float variance = fmaxf(squares / total / total / others - mean * mean, 0.0f);
    return exact && scored != 2 ? variance : fmaf(mean, mean / others, variance);
}

// ---- kernel ------------------------------------------------------------------------------------------------------

// Statistics of every pixel of N maps of (height, width), from scores at their own resolution.
//
//   scores, stride_*   (N, channels, source_height, source_width) in any order; strides in elements
//   scale_*, start_*   position of the samples, in pixels of the scores
//   order, first       classes sorted by target, GROUPED only
//   scored, targets    classes with a score Ke; those that can be emitted K
//   thresholds, per_*  float32 with stride 0 along an axis on which they do not depend; null: no prediction set
//   rule, background   background is -1 for none
//   exact              dispersion without the official form's extra term
//   truth, truth_code  (N, height, width) integers; null without true_score
//
// Outputs (N, height, width), null if not requested: label as uint8 or uint16; the others as ClassStats.
//
// One thread per pixel, blocks of 32 x 8 pixels; grid (columns of blocks, rows of blocks, N).
template <typename T, Activation A, Walk W>
__global__ void __launch_bounds__(THREADS, 3)
    class_stats(const T* scores, int64 stride_map, int64 stride_class, int64 stride_row, int64 stride_column,
                int channels, int source_height, int source_width, int height, int width, double scale_y,
                double start_y, double scale_x, double start_x, const int* order, const int* first, int scored,
                int targets, const float* thresholds, int64 per_class, int64 per_row, int64 per_column, int rule,
                int background, int ignore, bool exact, const void* truth, int truth_code, uint8* label,
                uint16* wide_label, uint16* top, float* confidence, float* share, float* dispersion, uint16* second,
                float* second_confidence, uint16* set_size, float* true_score) {
    __shared__ Tap rows[TILE_HEIGHT], columns[TILE_WIDTH];
    __shared__ float highest[THREADS / 32];
    const int64 map = blockIdx.z;
    const int tile_row = blockIdx.y * TILE_HEIGHT, tile_column = blockIdx.x * TILE_WIDTH;
    const int thread = threadIdx.x;

    if (thread < TILE_WIDTH)
        columns[thread] = tap_of(tile_column + thread, scale_x, start_x, source_width);
    else if (thread < TILE_WIDTH + TILE_HEIGHT)
        rows[thread - TILE_WIDTH] = tap_of(tile_row + thread - TILE_WIDTH, scale_y, start_y, source_height);
    if (per_class != 0) {
        float bound = -infinity();
        for (int i = thread; i < scored; i += THREADS) bound = fmaxf(bound, thresholds[i * per_class]);
        for (int step = 16; step > 0; step /= 2) bound = fmaxf(bound, __shfl_xor_sync(ALL_LANES, bound, step));
        if (thread % 32 == 0) highest[thread / 32] = bound;
    }
    __syncthreads();

    const int row = tile_row + thread / TILE_WIDTH, column = tile_column + thread % TILE_WIDTH;
    if (row >= height || column >= width) return;
    const Tap y = rows[thread / TILE_WIDTH], x = columns[thread % TILE_WIDTH];
    const Corners<T> corners = {scores + map * stride_map + y.lower * stride_row + x.lower * stride_column,
                                x.step * stride_column,
                                y.step * stride_row,
                                stride_class,
                                x.weight,
                                y.weight};
    const Classes classes = {channels, order, first, scored};
    const int64 pixel = (map * height + row) * width + column;

    Tally<A> tally;
    walk<W>(corners, classes, [&](float value, int target, bool begins, bool ends) {
        tally.add(value, begins);
        if (ends) tally.close(target);
    });
    const bool finite = tally.finite;

    int chosen = tally.top;
    if (thresholds != nullptr) {
        Thresholds limits = {thresholds + row * per_row + column * per_column, per_class, 0};
        limits.highest = limits.values[0];
        if (per_class != 0) {
            limits.highest = highest[0];
            for (int i = 1; i < THREADS / 32; ++i) limits.highest = fmaxf(limits.highest, highest[i]);
        }
        const PredictionSet set = prediction_set<A, W>(corners, classes, tally, limits, background);
        chosen = chosen_by_rule(rule, set, tally.top, background);
        if (set_size != nullptr) set_size[pixel] = finite ? set.size : 0;
    }
    const int emitted = finite && chosen >= 0 && chosen < targets ? chosen : ignore;
    if (label != nullptr) label[pixel] = static_cast<uint8>(emitted);
    if (wide_label != nullptr) wide_label[pixel] = static_cast<uint16>(emitted);

    const bool has_second = finite && tally.second >= 0;
    const float total = tally.total();
    const bool shared = finite && total > 0;
    if (top != nullptr) top[pixel] = finite ? tally.top : UNREACHED;
    if (confidence != nullptr) confidence[pixel] = finite ? tally.score(tally.mass_of_top()) : 0;
    if (share != nullptr) share[pixel] = shared ? tally.mass_of_top() / total : 0;
    if (dispersion != nullptr)
        dispersion[pixel] = shared ? dispersion_of(tally.rest, tally.squares, total, scored, exact) : 0;
    if (second != nullptr) second[pixel] = has_second ? tally.second : UNREACHED;
    if (second_confidence != nullptr) second_confidence[pixel] = has_second ? tally.score(tally.mass_of_second()) : 0;

    if (true_score == nullptr) return;
    const int64 actual = load_integer(truth, truth_code, pixel);
    float score = not_a_number();
    if (actual >= 0 && actual < scored && actual != ignore) {
        const int target = static_cast<int>(actual);
        const int begin = W == GROUPED ? first[target] : target, end = W == GROUPED ? first[target + 1] : target + 1;
        score = infinity();
        if (finite && begin < end) {
            float rank = 0;
#pragma unroll 1
            for (int i = begin; i < end; ++i)
                rank = rank_with<A>(rank, corners.sample(W == GROUPED ? order[i] : i), i == begin, tally.reference);
            score = tally.nonconformity(target, rank);
        }
    }
    true_score[pixel] = score;
}
