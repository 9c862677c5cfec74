// The dialect of CUDA C++ that the kernels are written in, as host C++.
//
// Every thread of a block is a fiber. A fiber runs until it meets a barrier or a warp operation, then the next one
// runs; when all that the barrier waits for have arrived, they go on. The order in which fibers and blocks run is an
// argument of the launch, and so is whether a warp runs ahead of the others to the next barrier of the block: a correct
// kernel gives the same bits under every schedule, so a result that changes is a race.
//
// Stricter than a device: a barrier that some thread of the block never reaches, a warp operation that a lane of its
// mask never reaches, or two different operations met as one, end the launch with a message. Shared memory is filled
// with the launch's poison before every block.
//
// Not modeled: memory order between threads that no barrier separates, and the last bit of expf.

#pragma once

#include <algorithm>
#include <csetjmp>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <type_traits>
#include <ucontext.h>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define VISIT(branch, iteration) simt::visit(#branch, iteration)

// ---- names of the language --------------------------------------------------------------------------------------

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct uint3 {
    unsigned x, y, z;
};

// Shared memory is static, so it lies in .bss, which is poisoned as a whole (GCC ignores the section attribute on the
// static variables of templates). What must outlive that is kept in a section of its own.
#define SIMT_OWN __attribute__((section("simt_own")))
SIMT_OWN static uint3 threadIdx = {}, blockIdx = {}, blockDim = {}, gridDim = {};

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

// ---- fibers -----------------------------------------------------------------------------------------------------

namespace simt {

constexpr int WARP = 32;
constexpr int MAX_THREADS = 1024;
constexpr size_t STACK = 64 * 1024;

enum Wait { RUNS, AT_BARRIER, AT_WARP, DONE };
enum Operation { SYNC, SYNC_OR, SYNC_COUNT, SHUFFLE, BALLOT, MATCH };

struct Fiber {
    jmp_buf state;
    ucontext_t start;
    void* stack = nullptr;
    Wait wait = DONE;
    Operation operation = SYNC;
    unsigned mask = 0;
    unsigned phase = 0;
    uint3 index{};
};

// What the lanes of a warp hand each other. Two slots: a lane may reach its next operation before another has read
// the last one's values, but no lane can be two operations ahead.
struct Exchange {
    uint64_t value[2][WARP];
};

struct Block {
    std::vector<Fiber> fibers = std::vector<Fiber>(MAX_THREADS);
    std::vector<Exchange> exchange = std::vector<Exchange>(MAX_THREADS / WARP);
    jmp_buf scheduler;
    int current = 0;
    int vote = 0;
    int result = 0;
    void (*body)(void**) = nullptr;
    void** arguments = nullptr;
    std::string failure;
};

SIMT_OWN static Block* the_block = nullptr;

inline Block& block() { return *the_block; }

inline Fiber& self() { return block().fibers[block().current]; }

inline void pause() {
    if (_setjmp(self().state) == 0) _longjmp(block().scheduler, 1);
}

// Body of every fiber: it serves one thread of each block.
inline void serve() {
    for (;;) {
        block().body(block().arguments);
        self().wait = DONE;
        pause();
    }
}

inline void resume(int thread) {
    Block& b = block();
    b.current = thread;
    Fiber& fiber = b.fibers[thread];
    threadIdx = fiber.index;
    if (_setjmp(b.scheduler) != 0) return;
    if (fiber.stack != nullptr) _longjmp(fiber.state, 1);
    fiber.stack = std::malloc(STACK);
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack;
    fiber.start.uc_stack.ss_size = STACK;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, serve, 0);
    setcontext(&fiber.start);
}

inline const char* name_of(Operation operation) {
    static const char* const names[] = {"__syncthreads", "__syncthreads_or", "__syncthreads_count",
                                        "__shfl_sync",   "__ballot_sync",    "__match_any_sync"};
    return names[operation];
}

// A barrier opens when every thread of the block waits at it.
inline bool open_barrier(int threads) {
    Block& b = block();
    for (int t = 0; t < threads; ++t) {
        if (b.fibers[t].wait != AT_BARRIER) return false;
        if (b.fibers[t].operation != b.fibers[0].operation) {
            b.failure = std::string("threads meet at different barriers: ") + name_of(b.fibers[0].operation) + " and " +
                        name_of(b.fibers[t].operation);
            return false;
        }
    }
    b.result = b.vote;
    b.vote = 0;
    for (int t = 0; t < threads; ++t) b.fibers[t].wait = RUNS;
    return true;
}

// A warp operation completes when every lane of its mask waits at the same one.
inline bool open_warp(int first, int threads) {
    Block& b = block();
    bool opened = false;
    for (int lane = 0; lane < WARP && first + lane < threads; ++lane) {
        Fiber& fiber = b.fibers[first + lane];
        if (fiber.wait != AT_WARP || !(fiber.mask >> lane & 1)) continue;
        const unsigned mask = fiber.mask;
        const Operation operation = fiber.operation;
        bool all = true;
        for (int other = 0; other < WARP; ++other) {
            if (!(mask >> other & 1)) continue;
            const bool exists = first + other < threads;
            const Fiber& peer = b.fibers[first + other];
            all = all && exists && peer.wait == AT_WARP && peer.mask == mask && peer.operation == operation;
        }
        if (!all) continue;
        for (int other = 0; other < WARP; ++other)
            if (mask >> other & 1) b.fibers[first + other].wait = RUNS;
        opened = true;
    }
    return opened;
}

inline void describe_deadlock(int threads) {
    Block& b = block();
    if (!b.failure.empty()) return;
    int done = 0, barrier = 0, warp = 0;
    const char* where = "";
    for (int t = 0; t < threads; ++t) {
        done += b.fibers[t].wait == DONE;
        barrier += b.fibers[t].wait == AT_BARRIER;
        warp += b.fibers[t].wait == AT_WARP;
        if (b.fibers[t].wait == AT_BARRIER || b.fibers[t].wait == AT_WARP) where = name_of(b.fibers[t].operation);
    }
    char text[256];
    std::snprintf(text, sizeof text,
                  "block (%u, %u, %u): threads wait for others that never come at %s: %d at a barrier, %d at a warp "
                  "operation, %d have left",
                  blockIdx.x, blockIdx.y, blockIdx.z, where, barrier, warp, done);
    b.failure = text;
}

// Warps that took a marked branch, each iteration of the loop around it counted once.
struct Visits {
    std::map<std::string, long long> counts;
    std::set<std::tuple<std::string, int, int>> block;
};
SIMT_OWN static Visits* the_visits = nullptr;

inline Visits& visits() {
    if (the_visits == nullptr) the_visits = new Visits;
    return *the_visits;
}

inline void visit(const char* branch, int iteration) {
    if (visits().block.emplace(branch, block().current / WARP, iteration).second) ++visits().counts[branch];
}

// The ends of this library's .bss, from the linker.
extern "C" char __bss_start[] __attribute__((visibility("hidden")));
extern "C" char _end[] __attribute__((visibility("hidden")));

// Runs the current block; order holds its threads, those of a warp side by side.
inline bool run_block(const std::vector<int>& order, bool eager, unsigned char poison) {
    Block& b = block();
    const int threads = static_cast<int>(order.size());
    std::memset(__bss_start, poison, _end - __bss_start);
    visits().block.clear();
    for (int t = 0; t < threads; ++t) {
        b.fibers[t].wait = RUNS;
        b.fibers[t].phase = 0;
        b.fibers[t].index = {t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
    }
    b.vote = 0;
    for (;;) {
        int done = 0;
        bool opened = false;
        for (int begin = 0, end; begin < threads; begin = end) {
            const int warp = order[begin] / WARP;
            for (end = begin; end < threads && order[end] / WARP == warp;) ++end;
            bool again;
            do {
                for (int i = begin; i < end; ++i)
                    if (b.fibers[order[i]].wait == RUNS) resume(order[i]);
                again = open_warp(warp * WARP, threads);
                opened = opened || again;
            } while (eager && again);
            for (int i = begin; i < end; ++i) done += b.fibers[order[i]].wait == DONE;
        }
        if (done == threads) return true;
        if (!opened && !open_barrier(threads)) {
            describe_deadlock(threads);
            return false;
        }
    }
}

// A permutation of 0..n-1: in order, reversed, or shuffled by a seed.
inline std::vector<int> permutation(size_t n, int schedule, uint64_t seed) {
    std::vector<int> order(n);
    for (size_t i = 0; i < n; ++i) order[i] = static_cast<int>(schedule == 1 ? n - 1 - i : i);
    if (schedule < 2) return order;
    for (size_t i = n; i > 1; --i) {
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        std::swap(order[i - 1], order[(seed >> 33) % i]);
    }
    return order;
}

// The threads of a block, permuted by warps and by the lanes of each warp.
inline std::vector<int> thread_order(int threads, int schedule, uint64_t seed) {
    std::vector<int> order;
    for (int warp : permutation((threads + WARP - 1) / WARP, schedule, seed))
        for (int lane : permutation(std::min(WARP, threads - warp * WARP), schedule, seed + warp))
            order.push_back(warp * WARP + lane);
    return order;
}

// Schedule 0: blocks, warps and lanes in order, the warps side by side. 1: all reversed. 2: all shuffled. Under 1 and 2
// each warp runs ahead as far as it can.
inline int launch(void (*body)(void**), void** arguments, const unsigned* grid, const unsigned* threads, int schedule,
                  unsigned char poison, char* message, size_t capacity) {
    if (the_block == nullptr) the_block = new Block;
    Block& b = block();
    b.body = body;
    b.arguments = arguments;
    b.failure.clear();
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {threads[0], threads[1], threads[2]};
#if defined(__x86_64__)
    // CuPy compiles with -ftz=true: single precision has no subnormal numbers there, so it has none here.
    const unsigned control = _mm_getcsr();
    _mm_setcsr(control | 0x8040);
#endif
    const size_t blocks = static_cast<size_t>(grid[0]) * grid[1] * grid[2];
    const auto block_order = permutation(blocks, schedule, 1);
    bool good = true;
    for (size_t i = 0; i < blocks && good; ++i) {
        const size_t at = block_order[i];
        blockIdx = {static_cast<unsigned>(at % grid[0]), static_cast<unsigned>(at / grid[0] % grid[1]),
                    static_cast<unsigned>(at / grid[0] / grid[1])};
        good = run_block(thread_order(threads[0] * threads[1] * threads[2], schedule, 2 + i), schedule != 0, poison);
    }
#if defined(__x86_64__)
    _mm_setcsr(control);
#endif
    if (!good) {
        std::snprintf(message, capacity, "%s", b.failure.c_str());
        // Fibers that wait inside a kernel cannot be taken back: new ones serve the next launch.
        for (Fiber& fiber : b.fibers) fiber.stack = nullptr;
    }
    return good ? 0 : 1;
}

inline void meet(Operation operation) {
    Fiber& fiber = self();
    fiber.wait = AT_BARRIER;
    fiber.operation = operation;
    pause();
}

// Hand in a value; returns the values of all lanes.
template <typename T>
inline const uint64_t* exchange(Operation operation, unsigned mask, T value) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value, "warp operations move up to 8 bytes");
    Block& b = block();
    Fiber& fiber = self();
    uint64_t* slot = b.exchange[b.current / WARP].value[fiber.phase++ & 1];
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    slot[b.current % WARP] = bits;
    fiber.wait = AT_WARP;
    fiber.operation = operation;
    fiber.mask = mask;
    pause();
    return slot;
}

template <typename T>
inline T shuffle(unsigned mask, T value, int source) {
    const uint64_t* slot = exchange(SHUFFLE, mask, value);
    const int lane = block().current % WARP;
    const int from = source >= 0 && source < WARP && (mask >> source & 1) ? source : lane;
    T result;
    std::memcpy(&result, &slot[from], sizeof(T));
    return result;
}

inline int lane() { return block().current % WARP; }

}  // namespace simt

// ---- barriers and warp operations -------------------------------------------------------------------------------

inline void __syncthreads() { simt::meet(simt::SYNC); }
inline int __syncthreads_or(int predicate) {
    simt::block().vote |= predicate != 0;
    simt::meet(simt::SYNC_OR);
    return simt::block().result;
}
inline int __syncthreads_count(int predicate) {
    simt::block().vote += predicate != 0;
    simt::meet(simt::SYNC_COUNT);
    return simt::block().result;
}
template <typename T>
inline T __shfl_sync(unsigned mask, T value, int source) {
    return simt::shuffle(mask, value, source & 31);
}
template <typename T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta) {
    return simt::shuffle(mask, value, simt::lane() + static_cast<int>(delta));
}
template <typename T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits) {
    return simt::shuffle(mask, value, simt::lane() ^ bits);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    const uint64_t* slot = simt::exchange(simt::BALLOT, mask, predicate != 0);
    unsigned votes = 0;
    for (int lane = 0; lane < simt::WARP; ++lane)
        if (mask >> lane & 1) votes |= (slot[lane] & 1u) << lane;
    return votes;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
template <typename T>
inline unsigned __match_any_sync(unsigned mask, T value) {
    const uint64_t* slot = simt::exchange(simt::MATCH, mask, value);
    const uint64_t mine = slot[simt::lane()];
    unsigned peers = 0;
    for (int lane = 0; lane < simt::WARP; ++lane)
        if ((mask >> lane & 1) && slot[lane] == mine) peers |= 1u << lane;
    return peers;
}

// ---- atomics ----------------------------------------------------------------------------------------------------

template <typename T>
inline T atomicAdd(T* address, T value) {
    const T old = *address;
    *address = old + value;
    return old;
}
template <typename T>
inline T atomicMax(T* address, T value) {
    const T old = *address;
    if (value > old) *address = value;
    return old;
}

// ---- arithmetic -------------------------------------------------------------------------------------------------

template <typename To, typename From>
inline To simt_bits(From value) {
    static_assert(sizeof(To) == sizeof(From), "");
    To result;
    std::memcpy(&result, &value, sizeof(To));
    return result;
}
inline unsigned __float_as_uint(float value) { return simt_bits<unsigned>(value); }
inline float __uint_as_float(unsigned bits) { return simt_bits<float>(bits); }
inline long long __double_as_longlong(double value) { return simt_bits<long long>(value); }
template <typename T>
inline void __stcg(T* address, T value) {
    *address = value;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(unsigned bits) { return __builtin_ffs(static_cast<int>(bits)); }
inline long long __double2ll_rn(double value) { return std::llrint(value); }
template <typename T>
inline T min(T a, T b) {
    return b < a ? b : a;
}
template <typename T>
inline T max(T a, T b) {
    return a < b ? b : a;
}

// The approximate instructions, to the edge of what they promise: each result is off by up to 2^-22 of itself, up or
// down by the bits of the argument, so that code that needs better fails its tests here.
inline float simt_off(float exact, float argument) {
    const unsigned hash = __float_as_uint(argument) * 2654435761u >> 16;
    const float off = (static_cast<int>(hash & 255) - 128) / 128.0f * 0x1p-22f;
    return exact > 1.2e-38f && exact < 3e38f ? exact + exact * off : exact < 1.2e-38f ? 0 : exact;
}
inline float fast_exp2(float x) { return simt_off(std::exp2f(x), x); }
inline float fast_reciprocal(float x) { return simt_off(1 / x, x); }

// IEEE binary16, by its bits.
inline float float_from_half(unsigned short bits) {
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    float value;
    if (exponent == 31)
        value = mantissa ? NAN : INFINITY;
    else if (exponent == 0)
        value = std::ldexp(static_cast<float>(mantissa), -24);
    else
        value = std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
    return bits >> 15 ? -value : value;
}

// ---- calling a kernel by its arguments' bytes, as cuLaunchKernel does -------------------------------------------

namespace simt {

// What a parameter takes: '*' and the element's size and kind for a pointer, else the size and kind of the value.
template <typename T>
std::string kind_of() {
    if constexpr (std::is_pointer<T>::value) {
        using Element = std::remove_cv_t<std::remove_pointer_t<T>>;
        if constexpr (std::is_void<Element>::value)
            return "*";
        else
            return "*" + kind_of<Element>();
    } else if constexpr (std::is_same<T, bool>::value) {
        return "b1";
    } else if constexpr (std::is_enum<T>::value) {
        return "i" + std::to_string(sizeof(T));
    } else if constexpr (std::is_class<T>::value) {
        return T::kind;
    } else {
        const char* kind = std::is_floating_point<T>::value ? "f" : std::is_signed<T>::value ? "i" : "u";
        return kind + std::to_string(sizeof(T));
    }
}

template <auto Kernel>
struct Entry;
template <typename... P, void (*Kernel)(P...)>
struct Entry<Kernel> {
    template <size_t... I>
    static void call(void** arguments, std::index_sequence<I...>) {
        Kernel(*static_cast<std::remove_cv_t<P>*>(arguments[I])...);
    }
    static void body(void** arguments) { call(arguments, std::index_sequence_for<P...>{}); }
    static std::string parameters() {
        std::string text;
        ((text += kind_of<std::remove_cv_t<P>>() + ","), ...);
        return text;
    }
};

struct Named {
    const char* name;
    void (*body)(void**);
    std::string parameters;
};

template <auto Kernel>
Named named(const char* name) {
    return {name, Entry<Kernel>::body, Entry<Kernel>::parameters()};
}

}  // namespace simt
