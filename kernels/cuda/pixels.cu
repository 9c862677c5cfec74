// Resizes and normalizes an image: two passes, columns then rows, without rounding in between.
//
// Instantiations: resize_columns, resize_rows_normalize.
//
// The caller provides the taps of both axes as tables, so every form of the kernel resamples with the same weights.

#include "common.cuh"

__device__ __forceinline__ float clip_pixel(float value) { return fminf(fmaxf(value, 0.0f), 255.0f); }

// First pass: resamples every row of the image to the new width.
//
//   image    (height, width, 3) uint8
//   first    (new_width,) int32 first tap;  weights  (new_width, taps) float32
//   clip     clip the filter's overshoot to [0, 255]
//   resized  (height, new_width, 3) float32
//
// One thread for the three channels of a pixel, blocks of 32 x 8; grid (columns of blocks, rows of blocks).
__global__ void __launch_bounds__(256)
    resize_columns(const uint8* image, int height, int width, int new_width, const int* first, const float* weights,
                   int taps, bool clip, float* resized) {
    const int64 row = blockIdx.y * blockDim.y + threadIdx.y;
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= height || column >= new_width) return;
    const int64 index = row * new_width + column;
    const uint8* pixel = image + (row * width + first[column]) * 3;
    const float* weight = weights + static_cast<int64>(column) * taps;
    float sum[3] = {0, 0, 0};
    for (int tap = 0; tap < taps; ++tap)
        for (int c = 0; c < 3; ++c) sum[c] = fmaf(weight[tap], pixel[3 * tap + c], sum[c]);
    for (int c = 0; c < 3; ++c) resized[3 * index + c] = clip ? clip_pixel(sum[c]) : sum[c];
}

// Second pass: resamples the columns to the new height, clips to [0, 255], normalizes and pads.
//
//   resized            (source_height, new_width, 3) float32 of the first pass
//   first, weights     taps of the rows, as in the first pass
//   canvas_*           size with the padding, below and to the right
//   factor, offset     x = pixel * factor + offset, for each channel in the order of the output
//   padding            x outside the image
//   reverse_channels   the output is BGR
//   channels_last      the output is (canvas_height, canvas_width, 3), else (3, canvas_height, canvas_width)
//
// One thread for the three channels of a pixel, blocks of 32 x 8; grid (columns of blocks, rows of blocks).
__global__ void __launch_bounds__(256)
    resize_rows_normalize(const float* resized, int new_height, int new_width, const int* first, const float* weights,
                          int taps, int canvas_height, int canvas_width, float factor_0, float factor_1, float factor_2,
                          float offset_0, float offset_1, float offset_2, float padding_0,
                          float padding_1, float padding_2, bool reverse_channels, bool channels_last, float* output) {
    const int64 row = blockIdx.y * blockDim.y + threadIdx.y;
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= canvas_height || column >= canvas_width) return;
    const int64 index = row * canvas_width + column, pixels = static_cast<int64>(canvas_height) * canvas_width;
    float value[3] = {padding_0, padding_1, padding_2};
    if (row < new_height && column < new_width) {
        const float* pixel = resized + (static_cast<int64>(first[row]) * new_width + column) * 3;
        const float* weight = weights + row * taps;
        float sum[3] = {0, 0, 0};
        for (int tap = 0; tap < taps; ++tap, pixel += 3 * static_cast<int64>(new_width))
            for (int c = 0; c < 3; ++c) sum[c] = fmaf(weight[tap], pixel[c], sum[c]);
        const float left = clip_pixel(sum[reverse_channels ? 2 : 0]), right = clip_pixel(sum[reverse_channels ? 0 : 2]);
        value[0] = fmaf(left, factor_0, offset_0);
        value[1] = fmaf(clip_pixel(sum[1]), factor_1, offset_1);
        value[2] = fmaf(right, factor_2, offset_2);
    }
    for (int c = 0; c < 3; ++c) output[channels_last ? 3 * index + c : c * pixels + index] = value[c];
}
