// PCOS weights: three passes over the maps, whose statistics never leave the device.
//
// Instantiations: pcos_gram<V>, pcos_clusters<V>, pcos_weights<V>, V = 4 if the addresses of the arrays are aligned,
// else 1.
//
// Each map is cut into gridDim.x parts. A pass writes the sums of each part, and every block of the next pass first adds
// up those of its map: the parts depend only on the map's size and are added in one order, so the results have the same
// bits on every device.
//
// A thread reads V pixels at once in maps of any size: packs are aligned in the batch, so that the first and the last
// pack of a map may lie partly outside it.
//
// Source: CSL (Liu et al.), prediction convex optimization separation; singular vectors of the 2 x N matrix in closed
// form from its Gram matrix. The sums are taken in double precision: the determinant of the Gram matrix cancels all
// digits of a float. The weights are computed in float.

#include "common.cuh"

constexpr int THREADS = 256;
constexpr int GRAM_SUMS = 6;     // pixels, x, v, xx, xv, vv
constexpr int CLUSTER_SUMS = 9;  // pixels of cluster 1; for each cluster the sums of dx, dxdx, dv, dvdv
constexpr int STATISTICS = 8;

// Share of ac below which the determinant ac - bb of the Gram matrix is rounding error: all pixels are on one line.
constexpr double DEGENERATE = 1e-13;

// Relative difference below which a mean equals another mean, or a pixel's value, up to the rounding of its sum.
constexpr double TIE = 1e-12;

constexpr float SMALLEST_NORMAL = 1.175494351e-38f;

// A map's x = share and v = dispersion, and the mask of pixels that take part.
struct Maps {
    const float* share;
    const float* dispersion;
    const bool* mask;
    int64 start, end;  // pixels of the map in the batch
};

template <int V>
struct Pixels {
    Pack<float, V> x, v;
    bool part[V];
};

// V elements from index on; those outside the map are zeros.
template <int V, typename T>
__device__ __forceinline__ Pack<T, V> load_part(const T* values, const Maps& maps, int64 index) {
    if (index >= maps.start && index + V <= maps.end) return *reinterpret_cast<const Pack<T, V>*>(values + index);
    Pack<T, V> pack;
    for (int i = 0; i < V; ++i)
        pack.value[i] = index + i >= maps.start && index + i < maps.end ? values[index + i] : static_cast<T>(0);
    return pack;
}

template <int V, typename T>
__device__ __forceinline__ void store_inside(T* values, const Maps& maps, int64 index, const Pack<T, V>& pack) {
    if (index >= maps.start && index + V <= maps.end) {
        store_pack(values + index, pack);
        return;
    }
    for (int i = 0; i < V; ++i)
        if (index + i >= maps.start && index + i < maps.end) values[index + i] = pack.value[i];
}

template <int V>
__device__ __forceinline__ Pixels<V> load_pixels(const Maps& maps, int64 index) {
    Pixels<V> result;
    result.x = load_part<V>(maps.share, maps, index);
    result.v = load_part<V>(maps.dispersion, maps, index);
    for (int i = 0; i < V; ++i) result.part[i] = result.x.value[i] > 0;
    if (maps.mask != nullptr) {
        const auto mask = load_part<V>(maps.mask, maps, index);
        for (int i = 0; i < V; ++i) result.part[i] = result.part[i] && mask.value[i];
    }
    return result;
}

__device__ __forceinline__ Maps maps_of_block(const float* share, const float* dispersion, const bool* mask,
                                              int64 pixels) {
    const int64 start = blockIdx.y * pixels;
    return {share, dispersion, mask, start, start + pixels};
}

// First pack of a thread, and the distance to its next one.
template <int V>
__device__ __forceinline__ int64 first_pack(const Maps& maps) {
    return maps.start / V * V + (blockIdx.x * static_cast<int64>(THREADS) + threadIdx.x) * V;
}
template <int V>
__device__ __forceinline__ int64 pack_stride() {
    return static_cast<int64>(gridDim.x) * THREADS * V;
}

// Adds the sums of all parts of the block's map.
template <int N>
__device__ __forceinline__ void add_parts(const double* parts, double (&sums)[N]) {
    for (int i = 0; i < N; ++i) sums[i] = 0;
    for (uint32 part = threadIdx.x; part < gridDim.x; part += THREADS)
        for (int i = 0; i < N; ++i) sums[i] += parts[(blockIdx.y * static_cast<int64>(gridDim.x) + part) * N + i];
    block_sum<N, THREADS>(sums);
}

template <int N>
__device__ __forceinline__ void store_part(double* parts, double (&sums)[N]) {
    block_sum<N, THREADS>(sums);
    if (threadIdx.x == 0)
        for (int i = 0; i < N; ++i) parts[(blockIdx.y * static_cast<int64>(gridDim.x) + blockIdx.x) * N + i] = sums[i];
}

// The two clusters as wedges at the origin: cluster 1 if |across . h| > |along . h|, h = (x, v). No coefficient is above
// 1, so that floats of them cannot overflow.
struct Wedge {
    double along_x, along_v, across_x, across_v;
    float rounded[4];

    __device__ __forceinline__ Wedge() = default;
    __device__ __forceinline__ Wedge(double along_x, double along_v, double across_x, double across_v)
        : along_x(along_x), along_v(along_v), across_x(across_x), across_v(across_v),
          rounded{static_cast<float>(along_x), static_cast<float>(along_v), static_cast<float>(across_x),
                  static_cast<float>(across_v)} {}

    __device__ __forceinline__ bool holds(float x, float v) const {
        // In float first; in double if the difference is within the rounding of the float, at most 4 x 2^-24 of each term.
        const float a = rounded[0] * x, b = rounded[1] * v, c = rounded[2] * x, d = rounded[3] * v;
        const float difference = fabsf(c + d) - fabsf(a + b);
        const float rounding = 5e-7f * (fabsf(a) + fabsf(b) + fabsf(c) + fabsf(d)) + 4 * SMALLEST_NORMAL;
        if (fabsf(difference) > rounding) return difference > 0;
        return fabs(fma(across_x, static_cast<double>(x), across_v * v)) >
               fabs(fma(along_x, static_cast<double>(x), along_v * v));
    }
};

__device__ __forceinline__ Wedge wedge_of_gram(double a, double b, double c) {
    const double determinant = a * c - b * b;
    if (c == 0 || determinant <= DEGENERATE * a * c) return {0, 0, 0, 0};
    const double half = (a - c) / 2, root = hypot(half, b), largest = (a + c) / 2 + root;
    const double ux = half >= 0 ? half + root : b, uv = half >= 0 ? b : root - half;
    // |u1 . h| / sigma1 > |u0 . h| / sigma0, u1 = (-uv, ux), without dividing.
    const double sigma0 = sqrt(largest), sigma1 = sqrt(determinant / largest);
    const double size = sigma0 * fmax(fabs(ux), fabs(uv));  // below 2^exponent, and no coefficient exceeds it
    const int exponent = static_cast<int>(__double_as_longlong(size) >> 52) - 1022;
    const double scale = ldexp(1.0, -exponent);
    return {ux * sigma1 * scale, uv * sigma1 * scale, -uv * sigma0 * scale, ux * sigma0 * scale};
}

// First pass: sums the Gram matrix.
//
//   share, dispersion  (maps, pixels) float32
//   mask               (maps, pixels) bool or null; pixels outside it, and those with share <= 0, are excluded
//   gram_parts         (maps, gridDim.x, 6) float64
//
// Grid (parts, maps).
template <int V>
__global__ void __launch_bounds__(THREADS)
    pcos_gram(const float* share, const float* dispersion, const bool* mask, int64 pixels, double* gram_parts) {
    const Maps maps = maps_of_block(share, dispersion, mask, pixels);
    double sums[GRAM_SUMS] = {};
    for (int64 index = first_pack<V>(maps); index < maps.end; index += pack_stride<V>()) {
        const Pixels<V> loaded = load_pixels<V>(maps, index);
        for (int i = 0; i < V; ++i) {
            if (!loaded.part[i]) continue;
            const double x = loaded.x.value[i], v = loaded.v.value[i];
            sums[0] += 1;
            sums[1] += x;
            sums[2] += v;
            sums[3] = fma(x, x, sums[3]);
            sums[4] = fma(x, v, sums[4]);
            sums[5] = fma(v, v, sums[5]);
        }
    }
    store_part(gram_parts, sums);
}

// Second pass: splits the clusters and sums each about the means of all pixels, which keeps the variances exact.
//
//   gram_parts     (maps, gridDim.x, 6) float64 of the first pass
//   cluster_parts  (maps, gridDim.x, 9) float64
//
// Grid (parts, maps).
template <int V>
__global__ void __launch_bounds__(THREADS)
    pcos_clusters(const float* share, const float* dispersion, const bool* mask, int64 pixels, const double* gram_parts,
                  double* cluster_parts) {
    __shared__ Wedge wedge;
    double gram[GRAM_SUMS];
    add_parts(gram_parts, gram);
    if (threadIdx.x == 0) wedge = wedge_of_gram(gram[3], gram[4], gram[5]);
    __syncthreads();
    const double mean_x = gram[1] / gram[0], mean_v = gram[2] / gram[0];

    const Maps maps = maps_of_block(share, dispersion, mask, pixels);
    double sums[CLUSTER_SUMS] = {};
    int64 members = 0;
    auto add = [&](double* sum, double dx, double dv) {
        sum[0] += dx;
        sum[1] = fma(dx, dx, sum[1]);
        sum[2] += dv;
        sum[3] = fma(dv, dv, sum[3]);
    };
    for (int64 index = first_pack<V>(maps); index < maps.end; index += pack_stride<V>()) {
        const Pixels<V> loaded = load_pixels<V>(maps, index);
        for (int i = 0; i < V; ++i) {
            if (!loaded.part[i]) continue;
            const float x = loaded.x.value[i], v = loaded.v.value[i];
            // Adjacent pixels are mostly of one cluster: a warp takes one of the branches.
            if (wedge.holds(x, v)) {
                ++members;
                add(sums + 5, x - mean_x, v - mean_v);
            } else {
                add(sums + 1, x - mean_x, v - mean_v);
            }
        }
    }
    sums[0] = static_cast<double>(members);
    store_part(cluster_parts, sums);
}

// Mean and unbiased variance of count values, from the sums about a center.
__device__ __forceinline__ double mean_of(double center, double sum, double count) {
    return count > 0 ? center + sum / count : 0;
}
__device__ __forceinline__ double variance_of(double sum, double squares, double count) {
    return count > 1 ? fmax(squares - sum * sum / count, 0.0) / (count - 1) : 0;
}

// Statistics of a map for the third pass.
struct Reliable {
    Wedge wedge;
    double mean_x, mean_v, variance_x, variance_v;
    int cluster;
};

__device__ __forceinline__ Reliable reliable_of(const double (&gram)[GRAM_SUMS], const double (&sums)[CLUSTER_SUMS]) {
    if (gram[0] == 0) return {{0, 0, 0, 0}, 1, 0, 1, 1, 0};
    const double center_x = gram[1] / gram[0], center_v = gram[2] / gram[0];
    const double count[2] = {gram[0] - sums[0], sums[0]};
    const double mean_0 = mean_of(center_x, sums[1], count[0]), mean_1 = mean_of(center_x, sums[5], count[1]);
    const int best = mean_1 > mean_0 * (1 + TIE) ? 1 : 0;
    const double n = best ? count[1] : count[0];
    const double x = best ? sums[5] : sums[1], xx = best ? sums[6] : sums[2];
    const double v = best ? sums[7] : sums[3], vv = best ? sums[8] : sums[4];
    return {wedge_of_gram(gram[3], gram[4], gram[5]),
            mean_of(center_x, x, n),
            mean_of(center_v, v, n),
            variance_of(x, xx, n),
            variance_of(v, vv, n),
            best};
}

// Largest float that does not exceed a value.
__device__ __forceinline__ float below(double value) {
    const float nearest = static_cast<float>(value);
    if (!(nearest > value)) return nearest;
    const uint32 bits = __float_as_uint(nearest);
    return nearest == 0 ? -SMALLEST_NORMAL : __uint_as_float(bits >> 31 ? bits + 1 : bits - 1);
}

// Third pass: computes the weights.
//
//   gram_parts, cluster_parts  of the passes before
//   denominator                z² is divided by it in the exponent
//   epsilon                    added to the variances
//   weight     (maps, pixels) float32
//   reliable   (maps, pixels) bool: weight 1
//   cluster    (maps, pixels) uint8, 255 outside the mask; or null
//   statistics (maps, 8) float64: a, b, c, mean x, mean v, variance x, variance v, index of the reliable cluster
//
// Grid (parts, maps).
template <int V>
__global__ void __launch_bounds__(THREADS, 3)
    pcos_weights(const float* share, const float* dispersion, const bool* mask, int64 pixels, const double* gram_parts,
                 const double* cluster_parts, double denominator, double epsilon, float* weight, bool* reliable,
                 uint8* cluster, double* statistics) {
    __shared__ Reliable best;
    double gram[GRAM_SUMS], sums[CLUSTER_SUMS];
    add_parts(gram_parts, gram);
    add_parts(cluster_parts, sums);
    if (threadIdx.x == 0) {
        best = reliable_of(gram, sums);
        if (blockIdx.x == 0) {
            double* of_map = statistics + blockIdx.y * static_cast<int64>(STATISTICS);
            for (int i = 0; i < 3; ++i) of_map[i] = gram[3 + i];
            of_map[3] = best.mean_x;
            of_map[4] = best.mean_v;
            of_map[5] = best.variance_x;
            of_map[6] = best.variance_v;
            of_map[7] = best.cluster;
        }
    }
    __syncthreads();
    const float scale_x = static_cast<float>(1 / sqrt(best.variance_x + epsilon));
    const float scale_v = static_cast<float>(1 / sqrt(best.variance_v + epsilon));
    const float exponent = static_cast<float>(-1 / denominator);
    const float limit_x = below(best.mean_x * (1 + TIE)), limit_v = -below(-best.mean_v * (1 - TIE));
    // The means as two floats each, so that a small difference keeps its digits.
    const float mean_x = static_cast<float>(best.mean_x), rest_x = static_cast<float>(best.mean_x - mean_x);
    const float mean_v = static_cast<float>(best.mean_v), rest_v = static_cast<float>(best.mean_v - mean_v);

    const Maps maps = maps_of_block(share, dispersion, mask, pixels);
    for (int64 index = first_pack<V>(maps); index < maps.end; index += pack_stride<V>()) {
        const Pixels<V> loaded = load_pixels<V>(maps, index);
        Pack<float, V> weights;
        Pack<bool, V> trusted;
        Pack<uint8, V> clusters;
        for (int i = 0; i < V; ++i) {
            const float x = loaded.x.value[i], v = loaded.v.value[i];
            const float z_x = ((x - mean_x) - rest_x) * scale_x, z_v = ((v - mean_v) - rest_v) * scale_v;
            const float worse = expf(fmaf(z_x, z_x, z_v * z_v) * exponent);
            const bool better = x > limit_x || v < limit_v;
            weights.value[i] = !loaded.part[i] ? 0 : better ? 1 : worse > SMALLEST_NORMAL ? worse : 0;
            trusted.value[i] = weights.value[i] == 1;
            clusters.value[i] = !loaded.part[i] ? 255 : cluster != nullptr && best.wedge.holds(x, v) ? 1 : 0;
        }
        store_inside(weight, maps, index, weights);
        store_inside(reliable, maps, index, trusted);
        if (cluster != nullptr) store_inside(cluster, maps, index, clusters);
    }
}
