// Cover of trusted mask perturbation.
//
// Instantiations: perturbation_cover<V>, V = 4 if width is a multiple of 4 and the addresses are aligned, else 1.

#include "common.cuh"

// Cell that covers a pixel of an axis: "pil" selects the cell at the pixel's center, "torch" floor(i * cells / size)
// in float32.
__device__ __forceinline__ uint32 cell_of_pixel(uint32 pixel, uint32 size, uint32 cells, bool torch_like) {
    if (!torch_like) return (2 * pixel + 1) * cells / (2 * size);
    const float scale = static_cast<float>(cells) / static_cast<float>(size);
    return min(static_cast<uint32>(static_cast<float>(pixel) * scale), cells - 1);
}

// Spreads cells over the pixels of maps; pixels that are not reliable are not covered.
//
//   cells     (maps, cell_rows, cell_columns) bool
//   reliable  (maps, height, width) bool, or (height, width) for all of them with reliable_stride 0, or null
//   cover     (maps, height, width) bool
//
// 2 * size * cells < 2^32 on both axes. One thread for V adjacent pixels of a row, blocks of 32 x 8 threads; grid
// (columns of blocks, rows of blocks, maps).
// Source: CSL (Liu et al.), trusted mask perturbation.
template <int V>
__global__ void __launch_bounds__(256)
    perturbation_cover(const bool* cells, int cell_rows, int cell_columns, const bool* reliable, int64 reliable_stride,
                       bool* cover, int height, int width, bool torch_like) {
    const int64 map = blockIdx.z;
    const int row = blockIdx.y * blockDim.y + threadIdx.y, column = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (row >= height || column >= width) return;
    const bool* cell = cells + (map * cell_rows + cell_of_pixel(row, height, cell_rows, torch_like)) * cell_columns;

    const int64 pixel = static_cast<int64>(row) * width + column;
    Pack<bool, V> covered;
    for (int i = 0; i < V; ++i) covered.value[i] = cell[cell_of_pixel(column + i, width, cell_columns, torch_like)];
    if (reliable != nullptr) {
        const auto trusted = *reinterpret_cast<const Pack<bool, V>*>(reliable + map * reliable_stride + pixel);
        for (int i = 0; i < V; ++i) covered.value[i] = covered.value[i] && trusted.value[i];
    }
    store_pack(cover + map * height * width + pixel, covered);
}
