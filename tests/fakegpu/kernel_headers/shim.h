// CUDA C++ for g++, as far as kernels use it: `g++ -include shim.h` compiles a kernel's text.
// The threads of a block run as fibers (src/fibers.cpp); barriers, shuffles and votes switch between them.
#pragma once
#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#include "shim_state.h"

// --- keywords ---

#define __global__
#define __device__
#define __host__
#define __constant__
#define __managed__
#ifdef SHIM_NO_SECTION // templates cannot put variables into a section
#define __shared__ static
#else
#define __shared__ static __attribute__((section("shim_shared")))
#endif
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_align__(n) __attribute__((aligned(n)))
#define __grid_constant__
#define __CUDA_ARCH__ 900
#define __CUDACC_VER_MAJOR__ 12
#define __CUDACC_VER_MINOR__ 9
#define FAKEGPU // for what PTX has an instruction for and C++ has not: see mma.h

// --- vectors ---

// clang-format off
#define SHIM_VECTORS(T, name, align2, align4)                                                                         \
    struct name##1 { T x; };                                                                                           \
    struct alignas(align2) name##2 { T x, y; };                                                                        \
    struct name##3 { T x, y, z; };                                                                                     \
    struct alignas(align4) name##4 { T x, y, z, w; };                                                                  \
    inline name##1 make_##name##1(T x) { return {x}; }                                                                 \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                                         \
    inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                                                 \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
#define uint3 shim_unused_uint3 // uint3 itself is in shim_state.h
SHIM_VECTORS(unsigned, uint, 8, 16)
#undef uint3
SHIM_VECTORS(char, char, 2, 4)
SHIM_VECTORS(unsigned char, uchar, 2, 4)
SHIM_VECTORS(short, short, 4, 8)
SHIM_VECTORS(unsigned short, ushort, 4, 8)
SHIM_VECTORS(int, int, 8, 16)
SHIM_VECTORS(long long, longlong, 16, 16)
SHIM_VECTORS(unsigned long long, ulonglong, 16, 16)
SHIM_VECTORS(float, float, 8, 16)
SHIM_VECTORS(double, double, 16, 16)
// clang-format on

// --- launching: compiler.py writes an entry point for each kernel, which calls shim::launch ---

namespace shim {
template <class... A, size_t... I> void invoke(void (*f)(A...), void** p, std::index_sequence<I...>) {
    f(*(std::remove_reference_t<A>*)p[I]...);
}
template <class... A> struct Call {
    void (*f)(A...);
    void** p;
};
template <class... A>
void launch(const char* name, void (*f)(A...), int mode, void** p, dim3 grid, dim3 block, unsigned shared, char* begin,
            char* end) {
    Call<A...> call{f, p};
    shim_run(
        name,
        [](void* c) {
            auto& call = *(Call<A...>*)c;
            invoke(call.f, call.p, std::index_sequence_for<A...>{});
        },
        &call, mode, grid, block, shared, begin, end);
}
template <class... A> constexpr int arity(void (*)(A...)) { return sizeof...(A); }
template <class... A> void sizes(void (*)(A...), int* out) { // of the arguments, in bytes
    int s[] = {(int)sizeof(A)..., 0};
    for (size_t i = 0; i < sizeof...(A); i++) out[i] = s[i];
}

template <class T> T exchange(unsigned mask, T value, int from) {
    static_assert(sizeof(T) <= 8);
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    bits = shim_exchange(mask, bits, from);
    memcpy(&value, &bits, sizeof(T));
    return value;
}
inline int lane() { return shim_state.current % 32; }
} // namespace shim

// --- threads, barriers, shuffles and votes ---

#define threadIdx (shim_state.thread)
#define blockIdx (shim_state.block)
#define blockDim (shim_state.block_dim)
#define gridDim (shim_state.grid_dim)
#define warpSize 32
#define __syncthreads() shim_block_barrier()
inline void __syncwarp(unsigned mask = ~0u) { shim_warp_barrier(mask & shim_active()); }
inline int __syncthreads_count(int p) { return shim_block_count(p); }
inline int __syncthreads_or(int p) { return shim_block_count(p) != 0; }
inline int __syncthreads_and(int p) { return shim_block_count(!p) == 0; }
#define __threadfence() // one thread runs at a time, so everyone sees what was written
#define __threadfence_block()
#define __threadfence_system()

template <class T> T __shfl_sync(unsigned m, T v, int from, int width = 32) {
    return shim::exchange(m, v, (shim::lane() & ~(width - 1)) + (from & (width - 1)));
}
template <class T> T __shfl_xor_sync(unsigned m, T v, int by, int width = 32) {
    int l = shim::lane(), to = l ^ by;
    return shim::exchange(m, v, (to & ~(width - 1)) <= (l & ~(width - 1)) ? to : l);
}
template <class T> T __shfl_down_sync(unsigned m, T v, unsigned by, int width = 32) {
    int l = shim::lane(), to = l + (int)by;
    return shim::exchange(m, v, (to & ~(width - 1)) == (l & ~(width - 1)) ? to : l);
}
template <class T> T __shfl_up_sync(unsigned m, T v, unsigned by, int width = 32) {
    int l = shim::lane(), to = l - (int)by;
    return shim::exchange(m, v, to >= (l & ~(width - 1)) ? to : l);
}

inline unsigned __ballot_sync(unsigned m, int p) { return shim_ballot(m, p); }
inline int __any_sync(unsigned m, int p) { return shim_ballot(m, p) != 0; }
inline int __all_sync(unsigned m, int p) { return shim_ballot(m, !p) == 0; }
inline unsigned __activemask() { return shim_active(); }
template <class T> unsigned __match_any_sync(unsigned m, T v) {
    unsigned r = 0;
    for (int i = 0; i < 32; i++)
        if (m >> i & 1) {
            T w = shim::exchange(m, v, i);
            r |= (w == v ? 1u : 0u) << i;
        }
    return r;
}

template <class T, class F> T shim_warp_reduce(unsigned m, T v, F f) {
    bool first = true;
    T r{};
    for (int i = 0; i < 32; i++)
        if ((m & shim_active()) >> i & 1) {
            T w = shim::exchange(m, v, i);
            r = first ? w : f(r, w);
            first = false;
        }
    return r;
}
template <class T> T __reduce_add_sync(unsigned m, T v) {
    return shim_warp_reduce(m, v, [](T a, T b) { return a + b; });
}
template <class T> T __reduce_min_sync(unsigned m, T v) {
    return shim_warp_reduce(m, v, [](T a, T b) { return b < a ? b : a; });
}
template <class T> T __reduce_max_sync(unsigned m, T v) {
    return shim_warp_reduce(m, v, [](T a, T b) { return a < b ? b : a; });
}

// --- mathematics ---

// clang-format off
using std::exp; using std::log; using std::sqrt; using std::tanh; using std::sin; using std::cos; using std::tan;
using std::pow; using std::fabs; using std::abs; using std::floor; using std::ceil; using std::rint; using std::round;
using std::trunc; using std::fmod; using std::fmax; using std::fmin; using std::isnan; using std::isinf;
using std::isfinite; using std::signbit; using std::erf; using std::erfc; using std::log1p; using std::expm1;
using std::exp2; using std::log2; using std::log10; using std::hypot; using std::atan2; using std::atan;
using std::asin; using std::acos; using std::sinh; using std::cosh; using std::copysign; using std::ldexp;
using std::frexp; using std::lgamma; using std::tgamma; using std::nextafter; using std::cbrt; using std::fma;
using std::modf; using std::asinh; using std::acosh; using std::atanh; using std::remainder; using std::nearbyint;
using std::ilogb; using std::logb;
// clang-format on

template <class A, class B, class = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>>>
constexpr std::common_type_t<A, B> min(A a, B b) {
    return (std::common_type_t<A, B>)b < (std::common_type_t<A, B>)a ? b : a;
}
template <class A, class B, class = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>>>
constexpr std::common_type_t<A, B> max(A a, B b) {
    return (std::common_type_t<A, B>)a < (std::common_type_t<A, B>)b ? b : a;
}

inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline float rsqrt(float x) { return 1 / std::sqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }
inline float rcbrtf(float x) { return 1 / std::cbrt(x); }
inline double rcbrt(double x) { return 1 / std::cbrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __exp10f(float x) { return std::pow(10.f, x); }
inline float exp10(float x) { return std::pow(10.f, x); }
inline double exp10(double x) { return std::pow(10., x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __log10f(float x) { return std::log10(x); }
inline float __powf(float x, float y) { return std::pow(x, y); }
inline float __sinf(float x) { return std::sin(x); }
inline float __cosf(float x) { return std::cos(x); }
inline float __tanf(float x) { return std::tan(x); }
inline float __tanhf(float x) { return std::tanh(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __frsqrt_rn(float x) { return 1 / std::sqrt(x); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }

// Rounded on their own: not inlined, so that g++ cannot make one fma of two of them.
#define SHIM_ALONE __attribute__((noinline))
SHIM_ALONE inline float __fadd_rn(float a, float b) { return a + b; }
SHIM_ALONE inline float __fsub_rn(float a, float b) { return a - b; }
SHIM_ALONE inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
SHIM_ALONE inline double __dadd_rn(double a, double b) { return a + b; }
SHIM_ALONE inline double __dmul_rn(double a, double b) { return a * b; }

inline float __saturatef(float x) { return x < 0 ? 0 : x > 1 ? 1 : x >= 0 ? x : 0; }
inline float normcdff(float x) { return 0.5f * std::erfc(-x * 0.70710678f); }
inline double normcdf(double x) { return 0.5 * std::erfc(-x * 0.7071067811865476); }

// --- loads, stores, bits, conversions ---

template <class T> T __ldg(const T* p) { return *p; }
template <class T> T __ldcs(const T* p) { return *p; }
template <class T> T __ldcg(const T* p) { return *p; }
template <class T> void __stcs(T* p, T v) { *p = v; }
template <class T> void __stcg(T* p, T v) { *p = v; }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
    unsigned r = 0;
    for (int i = 0; i < 32; i++) r |= (x >> i & 1) << (31 - i);
    return r;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((unsigned long long)a * b) >> 32); }
inline int __mulhi(int a, int b) { return (int)(((long long)a * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}
inline int __mul24(int a, int b) { return a * b; }

template <class To, class From> To shim_bits(From f) {
    To t;
    static_assert(sizeof(To) == sizeof(From));
    memcpy(&t, &f, sizeof t);
    return t;
}
inline int __float_as_int(float x) { return shim_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return shim_bits<unsigned>(x); }
inline float __int_as_float(int x) { return shim_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return shim_bits<float>(x); }
inline long long __double_as_longlong(double x) { return shim_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return shim_bits<double>(x); }
inline int __float2int_rn(float x) { return (int)std::nearbyint(x); }
inline int __float2int_rz(float x) { return (int)x; }
inline int __float2int_rd(float x) { return (int)std::floor(x); }
inline int __float2int_ru(float x) { return (int)std::ceil(x); }
inline float __int2float_rn(int x) { return (float)x; }
inline float __uint2float_rn(unsigned x) { return (float)x; }

// --- atomics: one thread runs at a time ---

template <class T, class U> T atomicAdd(T* p, U v) {
    T old = *p;
    *p = old + (T)v;
    return old;
}
template <class T, class U> T atomicSub(T* p, U v) {
    T old = *p;
    *p = old - (T)v;
    return old;
}
template <class T, class U> T atomicMax(T* p, U v) {
    T old = *p;
    if (old < (T)v) *p = v;
    return old;
}
template <class T, class U> T atomicMin(T* p, U v) {
    T old = *p;
    if ((T)v < old) *p = v;
    return old;
}
template <class T, class U> T atomicExch(T* p, U v) {
    T old = *p;
    *p = v;
    return old;
}
template <class T, class U> T atomicAnd(T* p, U v) {
    T old = *p;
    *p = old & (T)v;
    return old;
}
template <class T, class U> T atomicOr(T* p, U v) {
    T old = *p;
    *p = old | (T)v;
    return old;
}
template <class T, class U> T atomicXor(T* p, U v) {
    T old = *p;
    *p = old ^ (T)v;
    return old;
}
inline unsigned atomicInc(unsigned* p, unsigned v) {
    unsigned old = *p;
    *p = old >= v ? 0 : old + 1;
    return old;
}
inline unsigned atomicDec(unsigned* p, unsigned v) {
    unsigned old = *p;
    *p = old == 0 || old > v ? v : old - 1;
    return old;
}
template <class T> T atomicCAS(T* p, T compare, T v) {
    T old = *p;
    if (old == compare) *p = v;
    return old;
}

#include "mma.h"
