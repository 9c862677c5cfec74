// Kernels with one fault each, and one without, for the tests of the harness.

#include "common.cuh"

// Every warp operation and atomic of the dialect: out[0..5] are known numbers for 64 threads, out[6 + t] = 63 - t.
__global__ void faultless(int* out) {
    __shared__ int values[64];
    const int t = threadIdx.x, lane = t % 32;
    values[t] = t;
    __syncthreads();
    out[6 + t] = values[63 - t];
    int sum = t;
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, step);
    if (lane == 0) atomicAdd(&out[0], sum);
    const uint32 odd = __ballot_sync(ALL_LANES, lane % 2);
    const uint32 peers = __match_any_sync(ALL_LANES, t / 8);
    const int count = __syncthreads_count(t < 5);
    const bool any = __syncthreads_or(t == 63);
    const int next = __shfl_down_sync(ALL_LANES, t, 1);
    if (t == 9) {
        out[1] = __popc(odd);
        out[2] = __ffs(peers) - 1;
        out[3] = count;
        out[4] = any;
        out[5] = next;
    }
}

// Two sums over the block, one after the other, each known to every thread.
__global__ void two_sums(double* out) {
    for (int round = 0; round < 2; ++round) {
        double sums[2] = {threadIdx.x + 0.5, round * 1.0};
        block_sum<2, 64>(sums);
        out[round * 64 + threadIdx.x] = sums[0] + 1000 * sums[1];
    }
}

__global__ void neighbor_without_barrier(int* out) {
    __shared__ int values[64];
    values[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = values[(threadIdx.x + 1) % 64];
}

__global__ void blocks_that_overwrite(int* out) { out[0] = blockIdx.x; }

__global__ void barrier_for_some(int* out) {
    if (threadIdx.x < 40) __syncthreads();
    out[threadIdx.x] = 1;
}

__global__ void shuffle_for_some(int* out) {
    int value = threadIdx.x;
    if (threadIdx.x != 3) value = __shfl_xor_sync(ALL_LANES, value, 1);
    out[threadIdx.x] = value;
}

__global__ void different_barriers(int* out) {
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads_or(1);
    out[threadIdx.x] = 1;
}

__global__ void write_past_the_end(int* out) { out[threadIdx.x + 1] = 1; }

__global__ void write_before_the_start(int* out) { out[static_cast<int>(threadIdx.x) - 1] = 1; }

__global__ void read_past_the_end(const int* in, int* out) { out[threadIdx.x] = in[threadIdx.x + 1]; }

__global__ void shared_memory_without_values(int* out) {
    __shared__ int values[64];
    out[threadIdx.x] = values[threadIdx.x];
}

// A marked branch that the second warp takes in the even iterations of a loop, and the results of the approximate
// instructions: out[0..3] are the bits of 2^3, 1/8, 2^-200 and 1/inf.
__global__ void branches(int* out) {
    for (int i = 0; i < 10; ++i)
        if (threadIdx.x >= 40 && i % 2 == 0) VISIT(EVEN, i);
    if (threadIdx.x > 0) return;
    const float values[4] = {fast_exp2(3), fast_reciprocal(8), fast_exp2(-200), fast_reciprocal(infinity())};
    for (int i = 0; i < 4; ++i) out[i] = static_cast<int>(__float_as_uint(values[i]));
}

__global__ void typed(const float* values, int64 count, bool flag, int* out) { out[0] = values[0] + count + flag; }
