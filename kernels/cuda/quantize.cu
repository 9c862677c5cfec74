// Weights as 8-bit maps.
//
// Instantiations: quantize_weights<V>, V = 4 if the addresses are aligned (the last threads process the remainder one by
// one), else 1.

#include "common.cuh"

// Gray value of one weight: 255 if reliable, 0 without a weight, otherwise the nearest level in between.
__device__ __forceinline__ uint8 gray_of_weight(float weight, bool reliable, bool ignored, int levels) {
    // The sign is tested on the bits: a subnormal weight is positive.
    if (ignored || is_nan(weight) || static_cast<int>(__float_as_uint(weight)) <= 0) return 0;
    if (reliable) return 255;
    // The product of a float and an integer below 2^9 is exact in double precision, so a half is a half.
    const double level = min(max(rint(static_cast<double>(weight) * (levels - 1)), 1.0), levels - 2.0);
    return static_cast<uint8>(rintf(static_cast<float>(level) * 255.0f / static_cast<float>(levels - 1)));
}

// Converts weights to gray values.
//
//   weight    (count,) float32
//   reliable  (count,) bool, or null: weight >= 1
//   label     (count,) integers of the given code, or null: no pixel is ignored
//   gray      (count,) uint8
//   levels    3..256 evenly spaced gray values, 0 and 255 included
//   ignore    label of a pixel without a weight
//
// One thread for V adjacent pixels.
template <int V>
__global__ void __launch_bounds__(256)
    quantize_weights(const float* weight, const bool* reliable, const void* label, int label_code, uint8* gray,
                     int64 count, int levels, int64 ignore) {
    const int64 index = (blockIdx.x * 256ll + threadIdx.x) * V;
    if (index + V <= count) {
        const auto weights = *reinterpret_cast<const Pack<float, V>*>(weight + index);
        Pack<bool, V> trusted;
        if (reliable != nullptr)
            trusted = *reinterpret_cast<const Pack<bool, V>*>(reliable + index);
        else
            for (int i = 0; i < V; ++i) trusted.value[i] = weights.value[i] >= 1;
        Pack<uint8, V> grays;
        for (int i = 0; i < V; ++i) {
            const bool ignored = label != nullptr && load_integer(label, label_code, index + i) == ignore;
            grays.value[i] = gray_of_weight(weights.value[i], trusted.value[i], ignored, levels);
        }
        store_pack(gray + index, grays);
        return;
    }
    for (int64 i = index; i < count; ++i) {
        const bool ignored = label != nullptr && load_integer(label, label_code, i) == ignore;
        gray[i] = gray_of_weight(weight[i], reliable != nullptr ? reliable[i] : weight[i] >= 1, ignored, levels);
    }
}
