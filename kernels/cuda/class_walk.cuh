// Sampling of class scores for class_stats.cu: the classes in the source cell of a thread, one after the other.

#pragma once

#include "common.cuh"

enum Walk { STRIDED, VECTOR, GROUPED };

constexpr int PACK = 4;  // classes in one load of VECTOR

// Adjacent rows or columns of output pixels between the same two source rows or columns.
struct Strip {
    int start, count;  // first output row or column, and their number
    int lower, step;   // lower source row or column, and the distance of the upper one (0 at the edge)
};

__device__ __forceinline__ Strip load_strip(const int* strips, int index) {
    const auto words = *reinterpret_cast<const Pack<int, 4>*>(strips + 4 * static_cast<int64>(index));
    return {words.value[0], words.value[1], words.value[2], words.value[3]};
}

// The four source pixels around a thread's output pixels.
template <typename T>
struct Cell {
    const T* corners[4];  // of class 0
    int64 per_class;      // stride in elements

    // Reads V classes from step strides on.
    template <int V>
    __device__ __forceinline__ void load(int64 step, Pack<T, V> (&values)[4]) const {
        for (int i = 0; i < 4; ++i)
            values[i] = *reinterpret_cast<const Pack<T, V>*>(corners[i] + step * per_class);
    }

    __device__ __forceinline__ void advance() {
        for (int i = 0; i < 4; ++i) corners[i] += per_class;
    }
};

__device__ __forceinline__ float mix(float a, float step, float weight) { return fmaf(weight, step, a); }

// One class in the cell, interpolated along the rows at Q columns.
template <int Q>
struct Rows {
    float upper[Q], lower[Q], step[Q];

    __device__ __forceinline__ Rows(float a, float b, float c, float d, const float (&weights)[Q]) {
        const float above = b - a, below = d - c;
        for (int q = 0; q < Q; ++q) {
            upper[q] = mix(a, above, weights[q]);
            lower[q] = mix(c, below, weights[q]);
            step[q] = lower[q] - upper[q];
        }
    }

    __device__ __forceinline__ float value(int q, float weight) const { return mix(upper[q], step[q], weight); }

    // No value in the cell exceeds it: the larger row, and the rounding of the interpolation.
    __device__ __forceinline__ float bound() const {
        float highest = fmaxf(upper[0], lower[0]), size = fabsf(upper[0]) + fabsf(lower[0]);
        for (int q = 1; q < Q; ++q) {
            highest = fmaxf(highest, fmaxf(upper[q], lower[q]));
            size = fmaxf(size, fabsf(upper[q]) + fabsf(lower[q]));
        }
        return fmaf(size, 2.4e-7f, highest);
    }
};

// Model classes of each scored class.
struct Classes {
    int channels;      // model classes
    const int* order;  // GROUPED: model classes sorted by scored class
    const int* first;  // GROUPED: (scored + 1,) start of each scored class in order
    int scored;
};

// Visits every model class: visit(rows, scored class, begins it, ends it).
template <Walk W, int Q, typename T, typename Visit>
__device__ __forceinline__ void walk(const Cell<T>& cell, const Classes& classes, const float (&weights)[Q],
                                     Visit visit) {
    auto rows = [&](const auto& corners, int i) {
        return Rows<Q>(widen(corners[0].value[i]), widen(corners[1].value[i]), widen(corners[2].value[i]),
                       widen(corners[3].value[i]), weights);
    };
    if constexpr (W == GROUPED) {
        Pack<T, 1> corners[4];
#pragma unroll 1
        for (int target = 0, i = 0; target < classes.scored; ++target) {
            const int begin = i, end = classes.first[target + 1];
#pragma unroll 1
            for (; i < end; ++i) {
                cell.template load<1>(classes.order[i], corners);
                visit(rows(corners, 0), target, i == begin, i + 1 == end);
            }
        }
    } else if constexpr (W == VECTOR) {
        Pack<T, PACK> corners[4];
        int c = 0;
#pragma unroll 1
        for (; c + PACK <= classes.channels; c += PACK) {
            cell.template load<PACK>(c, corners);
#pragma unroll
            for (int i = 0; i < PACK; ++i) visit(rows(corners, i), c + i, true, true);
        }
        Pack<T, 1> rest[4];
#pragma unroll 1
        for (; c < classes.channels; ++c) {
            cell.template load<1>(c, rest);
            visit(rows(rest, 0), c, true, true);
        }
    } else {
        // The next class is loaded before this one is summed, and widened after.
        Cell<T> ahead = cell;
        Pack<T, 1> next[4];
        float corners[4];
        ahead.template load<1>(0, next);
        ahead.advance();
        for (int i = 0; i < 4; ++i) corners[i] = widen(next[i].value[0]);
#pragma unroll 1
        for (int c = 0; c < classes.channels; ++c) {
            if (c + 1 < classes.channels) ahead.template load<1>(0, next);
            ahead.advance();
            visit(Rows<Q>(corners[0], corners[1], corners[2], corners[3], weights), c, true, true);
            for (int i = 0; i < 4; ++i) corners[i] = widen(next[i].value[0]);
        }
    }
}
