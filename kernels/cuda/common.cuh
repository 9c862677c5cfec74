// Code that the kernels share: element types, order-preserving keys, reductions of fixed shape.
//
// Compiled by NVRTC with --std=c++17 --fmad=false. Without contraction every sum and product is rounded as written: an
// expression gives the same bits wherever it is inlined, and fused operations are explicit calls of fmaf and fma. CuPy
// adds -ftz=true: subnormal floats are zero in arithmetic and comparisons, so values that must be exact are compared as
// integer keys.

#pragma once

typedef unsigned char uint8;
typedef unsigned short uint16;
typedef unsigned int uint32;
typedef unsigned long long uint64;
typedef long long int64;

constexpr uint32 ALL_LANES = 0xffffffffu;

// Marks a branch that a warp takes in some iterations of a loop; tests/simt counts them.
#ifndef VISIT
#define VISIT(branch, iteration)
#endif

// The language has no names for these values.
__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }
__device__ __forceinline__ float not_a_number() { return __uint_as_float(0x7fc00000u); }

// ---- 16-bit scores -----------------------------------------------------------------------------------------------

struct fp16 {
    uint16 bits;
};
struct bf16 {
    uint16 bits;
};

#ifdef __CUDACC__
__device__ __forceinline__ float float_from_half(uint16 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

// 2^x and 1 / x by one instruction each, to a relative 2^-22; results below 1.2e-38 are 0.
__device__ __forceinline__ float fast_exp2(float x) {
    float value;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
    return value;
}
__device__ __forceinline__ float fast_reciprocal(float x) {
    float value;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
    return value;
}
#endif

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ float widen(fp16 value) { return float_from_half(value.bits); }
__device__ __forceinline__ float widen(bf16 value) { return __uint_as_float(static_cast<uint32>(value.bits) << 16); }

// V elements in one load; V of more than one needs an address that is a multiple of their size.
template <typename T, int V>
struct alignas(sizeof(T) * V) Pack {
    T value[V];
};

// Writes a pack in one store; 16 bytes through an intrinsic, since in a loop the compiler may lose their alignment.
template <typename T, int V>
__device__ __forceinline__ void store_pack(T* address, const Pack<T, V>& pack) {
    if constexpr (sizeof(pack) == sizeof(uint4))
        __stcg(reinterpret_cast<uint4*>(address), reinterpret_cast<const uint4&>(pack));
    else
        *reinterpret_cast<Pack<T, V>*>(address) = pack;
}

// Returns true if any of N values is greater than its limit, with one instruction per value; the compiler would
// otherwise store the result of each comparison.
template <int N>
__device__ __forceinline__ bool any_greater(const float (&values)[N], const float (&limits)[N]) {
#ifdef __CUDACC__
    if constexpr (N == 8) {
        int any;
        asm("{.reg .pred p; setp.gt.f32 p, %1, %9; setp.gt.or.f32 p, %2, %10, p; setp.gt.or.f32 p, %3, %11, p; "
            "setp.gt.or.f32 p, %4, %12, p; setp.gt.or.f32 p, %5, %13, p; setp.gt.or.f32 p, %6, %14, p; "
            "setp.gt.or.f32 p, %7, %15, p; setp.gt.or.f32 p, %8, %16, p; selp.b32 %0, 1, 0, p;}"
            : "=r"(any)
            : "f"(values[0]), "f"(values[1]), "f"(values[2]), "f"(values[3]), "f"(values[4]), "f"(values[5]),
              "f"(values[6]), "f"(values[7]), "f"(limits[0]), "f"(limits[1]), "f"(limits[2]), "f"(limits[3]),
              "f"(limits[4]), "f"(limits[5]), "f"(limits[6]), "f"(limits[7]));
        return any != 0;
    }
#endif
    bool any = false;
    for (int i = 0; i < N; ++i) any = any || values[i] > limits[i];
    return any;
}

// Sets `highest` to the higher of two values and returns the lower one; the compiler would copy registers.
__device__ __forceinline__ float keep_higher(float& highest, float value) {
#ifdef __CUDACC__
    float lower;
    asm("{min.ftz.f32 %0, %1, %2; max.ftz.f32 %1, %1, %2;}" : "=&f"(lower), "+f"(highest) : "f"(value));
    return lower;
#else
    const float lower = fminf(highest, value);
    highest = fmaxf(highest, value);
    return lower;
#endif
}

// value > limit ? yes : no, as a selection: the compiler would branch.
__device__ __forceinline__ float select_if_greater(float value, float limit, float yes, float no) {
#ifdef __CUDACC__
    float result;
    asm("{.reg .pred p; setp.gt.f32 p, %1, %2; selp.f32 %0, %3, %4, p;}"
        : "=f"(result)
        : "f"(value), "f"(limit), "f"(yes), "f"(no));
    return result;
#else
    return value > limit ? yes : no;
#endif
}
__device__ __forceinline__ int select_if_greater(float value, float limit, int yes, int no) {
#ifdef __CUDACC__
    int result;
    asm("{.reg .pred p; setp.gt.f32 p, %1, %2; selp.b32 %0, %3, %4, p;}"
        : "=r"(result)
        : "f"(value), "f"(limit), "r"(yes), "r"(no));
    return result;
#else
    return value > limit ? yes : no;
#endif
}

// ---- integers of any width ---------------------------------------------------------------------------------------

// Codes of the integer types of index maps, in the order of gpu/device.py's INTEGER_CODES.
enum IntegerCode { UINT8, INT8, UINT16, INT16, UINT32, INT32, UINT64, INT64 };

__device__ __forceinline__ int64 load_integer(const void* values, int code, int64 index) {
    switch (code) {
        case UINT8: return static_cast<const uint8*>(values)[index];
        case INT8: return static_cast<const signed char*>(values)[index];
        case UINT16: return static_cast<const uint16*>(values)[index];
        case INT16: return static_cast<const short*>(values)[index];
        case UINT32: return static_cast<const uint32*>(values)[index];
        case INT32: return static_cast<const int*>(values)[index];
        case UINT64: return static_cast<int64>(static_cast<const uint64*>(values)[index]);
        default: return static_cast<const int64*>(values)[index];
    }
}

// ---- order-preserving keys ---------------------------------------------------------------------------------------

// uint32 that sorts like the float: sign set, all bits inverted; else the sign bit set. -0 and +0 share a key.
__device__ __forceinline__ uint32 order_key(float value) {
    uint32 bits = __float_as_uint(value);
    bits = bits == 0x80000000u ? 0u : bits;
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float value_of_key(uint32 key) {
    return __uint_as_float(key >> 31 ? key ^ 0x80000000u : ~key);
}

// Tests the bits: correct in every floating point mode.
__device__ __forceinline__ bool is_nan(float value) { return (__float_as_uint(value) & 0x7fffffffu) > 0x7f800000u; }

// ---- counts ------------------------------------------------------------------------------------------------------

constexpr uint32 NO_CELL = 0xffffffffu;

// Adds one for each lane to its count, the lanes of a warp that share a count in one addition. All lanes take part.
template <typename T>
__device__ __forceinline__ void count_together(T* counts, uint32 cell) {
    if (!__any_sync(ALL_LANES, cell != NO_CELL)) return;
    const uint32 peers = __match_any_sync(ALL_LANES, cell);
    const int first = __ffs(peers) - 1;
    if (cell != NO_CELL && first == static_cast<int>(threadIdx.x % 32))
        atomicAdd(&counts[cell], static_cast<T>(__popc(peers)));
}

// ---- reductions --------------------------------------------------------------------------------------------------

// Sums N values over the THREADS threads of a block, in place and for every thread. The tree is fixed, so the sums have
// the same bits on every device and under every schedule.
template <int N, int THREADS>
__device__ __forceinline__ void block_sum(double (&values)[N]) {
    __shared__ double warps[N][THREADS / 32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int i = 0; i < N; ++i) {
        for (int step = 16; step > 0; step /= 2) values[i] += __shfl_xor_sync(ALL_LANES, values[i], step);
        if (lane == 0) warps[i][warp] = values[i];
    }
    __syncthreads();
    for (int i = 0; i < N; ++i) {
        values[i] = 0;
        for (int w = 0; w < THREADS / 32; ++w) values[i] += warps[i][w];
    }
    __syncthreads();
}
