// The pass over the classes of class_stats.cu: top classes and sums of masses of a thread's pixels.

#pragma once

#include "class_walk.cuh"

enum Activation { SOFTMAX, SIGMOID, NONE };
enum Mode { TOP, SUMS, SECONDS };

constexpr int THREADS = 128;
constexpr float LOG2E = 1.4426950408889634f;

// Softmax masses are in units of exp(reference). The reference follows the top class in steps: each change rounds the
// sums, and masses below exp(8) cannot overflow them. In powers of two.
constexpr float RESCALE_ABOVE = 8 * LOG2E;

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

    float shift[N];             // SOFTMAX: minus the reference, in powers of two
    float group[N];             // GROUPS: rank of the class being visited
    float top[N], second[N];    // ranks of the top and the second class
    float mass[N];              // of the top class, unless its rank is its mass
    float rest[N], squares[N];  // sum and sum of squares of the masses of all but the top class
    int top_class[N], second_class[N];
    float defects = 0;          // NaN if a corner of a class is not finite

    __device__ __forceinline__ Tally() {
        for (int i = 0; i < N; ++i) {
            shift[i] = infinity();
            top[i] = MASSES ? 0 : UNRANKED;
            second[i] = MASSES ? -1 : UNRANKED;
            mass[i] = rest[i] = squares[i] = group[i] = 0;
            top_class[i] = second_class[i] = -1;
        }
    }

    __device__ __forceinline__ float exponent(int i, float value) const { return fmaf(value, LOG2E, shift[i]); }
    __device__ __forceinline__ float top_mass(int i) const {
        return !RANK_IS_MASS ? mass[i] : top_class[i] < 0 ? 0 : top[i];
    }

    __device__ __forceinline__ void save(const Pixels<HAS_SUMS, N>& pixels) const {
        const bool finite = defects == 0;
        for (int i = 0; i < N; ++i) {
            pixels.set(TOP_RANK, i, top[i]);
            pixels.set(SECOND_RANK, i, second[i]);
            pixels.at(CLASSES, i) = finite ? (top_class[i] & 0xffffu) | static_cast<uint32>(second_class[i]) << 16 : ~0u;
            if constexpr (HAS_SUMS) {
                pixels.set(SHIFT, i, shift[i]);
                pixels.set(MASS, i, top_mass(i));
                pixels.set(REST, i, rest[i]);
                pixels.set(SQUARES, i, squares[i]);
            }
        }
    }

    // Makes a value the reference of a pixel.
    __device__ __forceinline__ void rescale(int i, float value) {
        const float factor = fast_exp2(-exponent(i, value));
        rest[i] *= factor;
        squares[i] *= factor * factor;
        top[i] *= factor;
        group[i] *= factor;
        second[i] = second[i] < 0 ? second[i] : second[i] * factor;
        shift[i] = -value * LOG2E;
    }

    // Makes a class the reference of the pixels in which its mass could overflow.
    __device__ __forceinline__ void rescale_all(const float (&value)[N], float (&own)[N]) {
        float exponents[N], limits[N];
        for (int i = 0; i < N; ++i) exponents[i] = exponent(i, value[i]), limits[i] = RESCALE_ABOVE;
        if (!any_greater(exponents, limits)) return;
        VISIT(RESCALES, 0);
        for (int i = 0; i < N; ++i) {
            if (!(exponents[i] > RESCALE_ABOVE)) continue;
            rescale(i, value[i]);
            own[i] = fast_exp2(exponent(i, value[i]));
        }
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
        top[i] = fmaxf(top[i], rank);
        return other;
    }

    // Adds a model class to the class being visited, and ranks that class at its end.
    template <int P, int Q>
    __device__ __forceinline__ void add(const Rows<Q>& rows, const float (&weights)[P], int scored, bool begins,
                                        bool ends) {
        static_assert(P * Q == N, "");
        VISIT(CLASS, scored);
        // With a corner that is not finite, no difference of the rows is.
        defects = fmaf(rows.step[0], 0.0f, defects);
        if constexpr (!HAS_SUMS && !GROUPS) {
            float lowest = top[0];
            for (int i = 1; i < N; ++i) lowest = fminf(lowest, top[i]);
            if (!(rows.bound() > lowest)) return;
            VISIT(COMPETES, scored);
            for (int i = 0; i < N; ++i) note(i, scored, rows.value(i % Q, weights[i / Q]), 0);
            return;
        }
        float value[N], rank[N], own[N];
        for (int i = 0; i < N; ++i) {
            rank[i] = value[i] = rows.value(i % Q, weights[i / Q]);
            if constexpr (A == SOFTMAX) rank[i] = own[i] = fast_exp2(exponent(i, value[i]));
        }
        if constexpr (GROUPS) {
            if constexpr (A == SOFTMAX) {
                rescale_all(value, own);
            }
            for (int i = 0; i < N; ++i) {
                const float part = A == SOFTMAX ? own[i] : value[i];
                group[i] = begins ? part : A == SIGMOID ? fmaxf(group[i], part) : group[i] + part;
            }
            if (!ends) return;
            for (int i = 0; i < N; ++i) rank[i] = own[i] = group[i];
        }
        if constexpr (A == NONE && !GROUPS)
            for (int i = 0; i < N; ++i) own[i] = rank[i];
        if constexpr (A == SIGMOID && HAS_SUMS)
            for (int i = 0; i < N; ++i) own[i] = sigmoid(rank[i]);
        if (any_greater(rank, rivals())) {
            VISIT(COMPETES, scored);
            if constexpr (A == SOFTMAX && !GROUPS) rescale_all(value, own);
            for (int i = 0; i < N; ++i) own[i] = note(i, scored, MASSES ? own[i] : rank[i], own[i]);
        }
        if constexpr (HAS_SUMS)
            for (int i = 0; i < N; ++i) {
                rest[i] += own[i];
                squares[i] = fmaf(own[i], own[i], squares[i]);
            }
    }
};
