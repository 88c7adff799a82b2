// A stand-in for CUDA's bfloat16: float arithmetic, rounded to nearest even. NaN becomes 0x7fff, as on a GPU.
#pragma once
struct __nv_bfloat16_raw {
    unsigned short x;
};
struct __nv_bfloat16 {
    unsigned short bits_;
    __nv_bfloat16() = default;
    __nv_bfloat16(const __nv_bfloat16_raw& r) : bits_(r.x) {}
    __nv_bfloat16(float f) {
        unsigned b = shim_bits<unsigned>(f);
        bits_ = f != f ? 0x7fff : (b + 0x7fff + (b >> 16 & 1)) >> 16;
    }
    __nv_bfloat16(double d) { // by way of the float next to it whose last bit is 1, so that it is rounded once
        float f = (float)d;
        unsigned b = shim_bits<unsigned>(f);
        if ((double)f != d && d == d && !(b & 1)) f = shim_bits<float>(std::fabs(f) < std::fabs(d) ? b + 1 : b - 1);
        *this = __nv_bfloat16(f);
    }
    template <class T, class = std::enable_if_t<std::is_integral_v<T>>> __nv_bfloat16(T i) : __nv_bfloat16((float)i) {}
    operator float() const { return shim_bits<float>((unsigned)bits_ << 16); }
};
typedef __nv_bfloat16 nv_bfloat16;
// clang-format off
#define SHIM_ARITHMETIC(op)                                                                                            \
    inline __nv_bfloat16 operator op(__nv_bfloat16 a, __nv_bfloat16 b) { return __nv_bfloat16((float)a op (float)b); }
#define SHIM_COMPARISON(op)                                                                                            \
    inline bool operator op(__nv_bfloat16 a, __nv_bfloat16 b) { return (float)a op (float)b; }
SHIM_ARITHMETIC(+)
SHIM_ARITHMETIC(-)
SHIM_ARITHMETIC(*)
SHIM_ARITHMETIC(/)
SHIM_COMPARISON(==)
SHIM_COMPARISON(!=)
SHIM_COMPARISON(<)
SHIM_COMPARISON(>)
SHIM_COMPARISON(<=)
SHIM_COMPARISON(>=)
// clang-format on

inline bool __hisnan(__nv_bfloat16 a) { return (a.bits_ & 0x7fff) > 0x7f80; }
inline int __hisinf(__nv_bfloat16 a) { return (a.bits_ & 0x7fff) == 0x7f80; }
inline float __bfloat162float(__nv_bfloat16 h) { return h; }
inline __nv_bfloat16 __float2bfloat16(float f) { return f; }
inline __nv_bfloat16 __float2bfloat16_rn(float f) { return f; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 h) { return h.bits_; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short v) { return __nv_bfloat16_raw{v}; }
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
