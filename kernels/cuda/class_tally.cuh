// The pass over the classes of class_stats.cu: top classes and sums of masses of a thread's pixels.

#pragma once

#include "class_walk.cuh"

enum Activation { SOFTMAX, SIGMOID, NONE };
enum Mode { TOP, SUMS, SECONDS };

constexpr int THREADS = 128;

// Softmax masses are powers of two above a reference, one for all pixels of a thread, whose own mass is 2^-11. The
// reference follows the highest value in steps, as soon as a mass is 2 or more: each change rounds the sums, and masses
// below 2 cannot overflow them.
constexpr float REFERENCE_POWER = -11;
// A pixel whose top class has less mass is far below the others of its thread, and is summed again with a reference of
// its own: 2^-35.
constexpr float FAINT = 2.910383e-11f;

// 1 / (1 + exp(-x)) to 2e-7 + 5e-8 |x| of its value.
__device__ __forceinline__ float sigmoid(float x) { return fast_reciprocal(1 + fast_exp2(-x * LOG2E)); }

// Statistics of a thread's pixels in shared memory, where a loop over the pixels can index them; no other thread reads
// them. The prediction sets reuse the words once the statistics are written.
enum Word { TOP_RANK, SECOND_RANK, CLASSES, SHIFT, MASS, REST, SQUARES };
enum SetWord { LOWEST, BEST_RANK, TOP_AND_BEST, SET_SHIFT, TOTAL, INVERSE };

template <bool HAS_SUMS, int N>
struct Pixels {
    static constexpr int WORDS = HAS_SUMS ? 7 : 4;
    static constexpr int COUNT = WORDS - 1;  // of the prediction set
    uint32 (*words)[N][THREADS];

    __device__ __forceinline__ uint32& at(int word, int i) const { return words[word][i][threadIdx.x]; }
    __device__ __forceinline__ float value(int word, int i) const { return __uint_as_float(at(word, i)); }
    __device__ __forceinline__ void set(int word, int i, float value) const { at(word, i) = __float_as_uint(value); }
};

// Result of one pass over the classes of N pixels.
//
// The rank orders the classes as their scores do: the mass for SOFTMAX (for TOP the logit, which has the same order),
// the logit for SIGMOID, also if the scores have saturated, the sum for NONE.
template <Activation A, bool GROUPS, Mode M, int N>
struct Tally {
    static constexpr bool HAS_SUMS = M != TOP;
    static constexpr bool MASSES = A == SOFTMAX && HAS_SUMS;
    static constexpr bool RANK_IS_MASS = A == NONE || MASSES;
    static constexpr float UNRANKED = -3.4e38f;

    float shift = 0;            // MASSES: REFERENCE_POWER minus the reference
    float group[N];             // GROUPS: rank of the class being visited
    float top[N], second[N];    // ranks of the top and the second class
    float mass[N];              // of the top class, unless its rank is its mass
    float rest[N], squares[N];  // sum and sum of squares of the masses of all classes except the top one
    int top_class[N], second_class[N];
    float defects = 0;          // NaN if a corner of a class is not finite

    // The reference is the first class: its highest value in the cell, or that of the only pixel.
    template <int P, int Q>
    __device__ __forceinline__ Tally(const Corners& first, const float (&weights_x)[Q], const float (&weights_y)[P]) {
        static_assert(P * Q == N, "");
        if constexpr (MASSES) {
            const float value = N == 1 ? Rows<Q>(first, weights_x).value(0, weights_y[0]) : first.highest();
            shift = fmaf(-value, LOG2E, REFERENCE_POWER);
        }
        for (int i = 0; i < N; ++i) {
            top[i] = MASSES ? 0 : UNRANKED;
            second[i] = MASSES ? -1 : UNRANKED;
            mass[i] = rest[i] = squares[i] = group[i] = 0;
            top_class[i] = second_class[i] = -1;
        }
    }

    __device__ __forceinline__ float top_mass(int i) const {
        return !RANK_IS_MASS ? mass[i] : top_class[i] < 0 ? 0 : top[i];
    }

    // Saves pixel i as number `place`.
    template <int OTHERS>
    __device__ __forceinline__ void save(int i, const Pixels<HAS_SUMS, OTHERS>& pixels, int place) const {
        const bool finite = defects == 0;
        pixels.set(TOP_RANK, place, top[i]);
        pixels.set(SECOND_RANK, place, second[i]);
        pixels.at(CLASSES, place) = finite ? (top_class[i] & 0xffffu) | static_cast<uint32>(second_class[i]) << 16 : ~0u;
        if constexpr (HAS_SUMS) {
            pixels.set(SHIFT, place, shift);
            pixels.set(MASS, place, finite ? top_mass(i) : not_a_number());
            pixels.set(REST, place, rest[i]);
            pixels.set(SQUARES, place, squares[i]);
        }
    }

    // Makes the highest value in the cell, or that of the only pixel, the reference if a mass could overflow the sums.
    __device__ __forceinline__ void rescale(float (&own)[N], const float (&powers)[N]) {
        uint32 bits = 0;
        for (int i = 0; i < N; ++i) bits |= __float_as_uint(own[i]);
        if (!(bits & 0x40000000u)) return;  // the highest bit of the exponents: no mass is 2 or more
        VISIT(RESCALES, 0);
        float highest = powers[0];
        for (int i = 1; i < N; ++i) highest = fmaxf(highest, powers[i]);
        highest -= REFERENCE_POWER;
        const float factor = fast_exp2(-highest);
        for (int i = 0; i < N; ++i) {
            own[i] = fast_exp2(powers[i] - highest);
            rest[i] *= factor;
            squares[i] *= factor * factor;
            top[i] *= factor;
            group[i] *= factor;
            second[i] = second[i] < 0 ? second[i] : second[i] * factor;
        }
        shift -= highest;
    }

    // Ranks of the classes that a class must exceed to be noted.
    __device__ __forceinline__ const float (&rivals() const)[N] {
        if constexpr (M == SECONDS) return second;
        return top;
    }

    // Notes a class of a pixel that may outrank its rival; returns the mass of whichever class is not the top one.
    __device__ __forceinline__ float note(int i, int scored, float rank, float own_mass) {
        const float other =
            MASSES ? fminf(own_mass, top[i]) : select_if_greater(rank, top[i], top_mass(i), own_mass);
        if constexpr (M == SECONDS) {
            const int candidate = select_if_greater(rank, second[i], scored, second_class[i]);
            second_class[i] = select_if_greater(rank, top[i], top_class[i], candidate);
            second[i] = top_class[i] < 0 ? second[i] : fmaxf(second[i], fminf(rank, top[i]));
        }
        mass[i] = select_if_greater(rank, top[i], own_mass, mass[i]);
        top_class[i] = select_if_greater(rank, top[i], scored, top_class[i]);
        if constexpr (MASSES && M == SUMS) return keep_higher(top[i], rank);
        top[i] = fmaxf(top[i], rank);
        return other;
    }

    // Adds a model class to the class being visited, and ranks that class at its end.
    template <int P, int Q>
    __device__ __forceinline__ void add(const Corners& corners, const float (&weights_x)[Q], const float (&weights_y)[P],
                                        int scored, bool begins, bool ends) {
        static_assert(P * Q == N, "");
        VISIT(CLASS, scored);
        const Rows<Q> rows(corners, weights_x);
        // If a corner is not finite, no difference of the rows is finite.
        defects = fmaf(rows.step[0], 0.0f, defects);
        if constexpr (!HAS_SUMS && !GROUPS) {
            float lowest = top[0];
            for (int i = 1; i < N; ++i) lowest = fminf(lowest, top[i]);
            if (!(rows.bound() > lowest)) return;
            VISIT(COMPETES, scored);
            for (int i = 0; i < N; ++i) note(i, scored, rows.value(i % Q, weights_y[i / Q]), 0);
            return;
        }
        float rank[N], own[N], powers[N];
        for (int i = 0; i < N; ++i) {
            powers[i] = rows.power(i % Q, weights_y[i / Q], shift);
            own[i] = rank[i] = MASSES ? fast_exp2(powers[i]) : rows.value(i % Q, weights_y[i / Q]);
        }
        if constexpr (GROUPS) {
            if constexpr (MASSES) rescale(own, powers);
            for (int i = 0; i < N; ++i)
                group[i] = begins ? own[i] : A == SIGMOID ? fmaxf(group[i], own[i]) : group[i] + own[i];
            if (!ends) return;
            for (int i = 0; i < N; ++i) rank[i] = own[i] = group[i];
        }
        if constexpr (A == SIGMOID && HAS_SUMS)
            for (int i = 0; i < N; ++i) own[i] = sigmoid(rank[i]);
        if (any_greater(rank, rivals())) {
            VISIT(COMPETES, scored);
            if constexpr (MASSES && !GROUPS) rescale(own, powers);
            for (int i = 0; i < N; ++i) sum(i, note(i, scored, MASSES ? own[i] : rank[i], own[i]));
        } else {
            for (int i = 0; i < N; ++i) sum(i, own[i]);
        }
    }

    __device__ __forceinline__ void sum(int i, float other) {
        if constexpr (!HAS_SUMS) return;
        rest[i] += other;
        squares[i] = fmaf(other, other, squares[i]);
    }
};
