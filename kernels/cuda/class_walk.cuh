// Sampling of class scores for class_stats.cu: the classes in the source cell of a thread, one after the other.

#pragma once

#include "common.cuh"

enum Walk { STRIDED, VECTOR, GROUPED };

constexpr int PACK = 4;  // classes in one load of VECTOR
constexpr float LOG2E = 1.4426950408889634f;

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
    int class_bytes;      // distance of adjacent classes

    // Reads V classes from a class on. An address is one instruction, which multiplies 32 bits and adds 64.
    template <int V>
    __device__ __forceinline__ void load(int first, Pack<T, V> (&values)[4]) const {
        for (int i = 0; i < 4; ++i)
            values[i] = *reinterpret_cast<const Pack<T, V>*>(reinterpret_cast<const char*>(corners[i]) +
                                                             static_cast<int64>(first) * class_bytes);
    }
};

__device__ __forceinline__ float mix(float a, float step, float weight) { return fmaf(weight, step, a); }

// One class at the corners of a cell: the upper two, then the lower two.
struct Corners {
    float a, b, c, d;

    template <typename T, int V>
    __device__ __forceinline__ Corners(const Pack<T, V> (&loaded)[4], int i)
        : a(widen(loaded[0].value[i])), b(widen(loaded[1].value[i])), c(widen(loaded[2].value[i])),
          d(widen(loaded[3].value[i])) {}

    __device__ __forceinline__ float highest() const { return fmaxf(fmaxf(a, b), fmaxf(c, d)); }
};

// One class in the cell, interpolated along the rows at Q columns.
template <int Q>
struct Rows {
    float upper[Q], lower[Q], step[Q];

    __device__ __forceinline__ Rows(const Corners& corners, const float (&weights)[Q]) {
        const auto& [a, b, c, d] = corners;
        const float above = b - a, below = d - c;
        for (int q = 0; q < Q; ++q) {
            upper[q] = mix(a, above, weights[q]);
            lower[q] = mix(c, below, weights[q]);
            step[q] = lower[q] - upper[q];
        }
    }

    __device__ __forceinline__ float value(int q, float weight) const { return mix(upper[q], step[q], weight); }

    // The value as a power of two, plus shift.
    __device__ __forceinline__ float power(int q, float weight, float shift) const {
        return fmaf(weight * LOG2E, step[q], fmaf(upper[q], LOG2E, shift));
    }

    // Upper bound of the values in the cell: that of the larger row, plus the rounding of the interpolation.
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

// The model class that walk() visits first.
template <Walk W, typename T>
__device__ __forceinline__ Corners first_class(const Cell<T>& cell, const Classes& classes) {
    Pack<T, 1> loaded[4];
    cell.template load<1>(W == GROUPED ? classes.order[0] : 0, loaded);
    return Corners(loaded, 0);
}

// Visits every model class for N pixels: visit(corners, scored class, begins it, ends it).
template <Walk W, int N, typename T, typename Visit>
__device__ __forceinline__ void walk(const Cell<T>& cell, const Classes& classes, Visit visit) {
    if constexpr (W == GROUPED) {
        Pack<T, 1> corners[4];
#pragma unroll 1
        for (int target = 0, i = 0; target < classes.scored; ++target) {
            const int begin = i, end = classes.first[target + 1];
#pragma unroll 1
            for (; i < end; ++i) {
                cell.template load<1>(classes.order[i], corners);
                visit(Corners(corners, 0), target, i == begin, i + 1 == end);
            }
        }
    } else if constexpr (W == VECTOR) {
        Pack<T, PACK> corners[4];
        int c = 0;
#pragma unroll 1
        for (; c + PACK <= classes.channels; c += PACK) {
            cell.template load<PACK>(c, corners);
#pragma unroll
            for (int i = 0; i < PACK; ++i) visit(Corners(corners, i), c + i, true, true);
        }
        Pack<T, 1> rest[4];
#pragma unroll 1
        for (; c < classes.channels; ++c) {
            cell.template load<1>(c, rest);
            visit(Corners(rest, 0), c, true, true);
        }
    } else {
        // The next class is loaded before this one is summed, and widened after.
        Pack<T, 1> next[4];
        cell.template load<1>(0, next);
        Corners corners(next, 0);
#pragma unroll 1
        for (int c = 0; c < classes.channels; ++c) {
            // The last class is read twice if that takes fewer instructions than a condition.
            if constexpr (N > 1)
                cell.template load<1>(min(c + 1, classes.channels - 1), next);
            else if (c + 1 < classes.channels)
                cell.template load<1>(c + 1, next);
            visit(corners, c, true, true);
            corners = Corners(next, 0);
        }
    }
}
