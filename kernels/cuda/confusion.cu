// Confusion counts.
//
// Instantiations: confusion_counts<SHARED>, SHARED if the counts fit in SHARED_CELLS.

#include "common.cuh"

constexpr int THREADS = 256;
constexpr int RUN = 8;              // adjacent pixels that a thread processes together
constexpr int SHARED_CELLS = 8192;  // counts in shared memory

// Index of a pixel's count, or -1 if its truth excludes it.
__device__ __forceinline__ int64 cell_of_pixel(int64 label, int64 truth, int num_classes, int64 ignore) {
    if (truth < 0 || truth >= num_classes || truth == ignore) return -1;
    return truth * (num_classes + 1ll) + (label < 0 || label > num_classes ? num_classes : label);
}

// Adds to one count, unless the cell is -1.
template <bool SHARED>
__device__ __forceinline__ void add(uint32* held, uint64* total, int64 cell, uint32 pixels) {
    if (cell < 0) return;
    if (SHARED)
        atomicAdd(&held[cell], pixels);
    else
        atomicAdd(&total[cell], static_cast<uint64>(pixels));
}

// Adds the pixels of each true class (row) and label (column) to counts.
//
//   label   (count,) integers of the given code; those outside [0, num_classes) count in the last column
//   truth   (count,) integers of the given code; ignore and those outside [0, num_classes) are excluded
//   counts  (num_classes, num_classes + 1)
//
// A thread adds once per run of equal pixels among its RUN, since adjacent pixels of label maps are mostly equal, and
// strides over the maps. With SHARED a block adds to its own counts, and adds those to the result at its end; 32 bits
// suffice below 2^32 pixels per block, that is, for maps smaller than terabytes. Integer additions commute, so the
// counts do not depend on the order. The bounds name four blocks per multiprocessor: without them ptxas chooses 40
// registers for sm_90 and spills.
template <bool SHARED>
__global__ void __launch_bounds__(THREADS, 4)
    confusion_counts(const void* label, int label_code, const void* truth, int truth_code, int64 count,
                     int num_classes, int64 ignore, int64* counts) {
    __shared__ uint32 held[SHARED ? SHARED_CELLS : 1];
    uint64* total = reinterpret_cast<uint64*>(counts);
    const int64 cells = num_classes * (num_classes + 1ll);
    if (SHARED) {
        for (int64 cell = threadIdx.x; cell < cells; cell += THREADS) held[cell] = 0;
        __syncthreads();
    }

    const int64 stride = static_cast<int64>(gridDim.x) * THREADS * RUN;
    for (int64 start = (blockIdx.x * static_cast<int64>(THREADS) + threadIdx.x) * RUN; start < count; start += stride) {
        const int64 end = start + RUN < count ? start + RUN : count;
        int64 cell = -1;
        uint32 pixels = 0;
        for (int64 i = start; i < end; ++i) {
            const int64 next = cell_of_pixel(load_integer(label, label_code, i), load_integer(truth, truth_code, i),
                                             num_classes, ignore);
            if (next != cell) {
                add<SHARED>(held, total, cell, pixels);
                cell = next;
                pixels = 0;
            }
            ++pixels;
        }
        add<SHARED>(held, total, cell, pixels);
    }

    if (SHARED) {
        __syncthreads();
        for (int64 cell = threadIdx.x; cell < cells; cell += THREADS)
            if (held[cell] > 0) atomicAdd(&total[cell], static_cast<uint64>(held[cell]));
    }
}
