// A stand-in for CUDA's half type: float arithmetic, rounded to nearest even by the compiler's _Float16.
#pragma once
struct __half_raw {
    unsigned short x;
};
struct __half2;
struct __half {
    unsigned short bits_;
    __half() = default;
    __half(const __half_raw& r) : bits_(r.x) {}
    __half(float f) {
        _Float16 v = (_Float16)f;
        memcpy(&bits_, &v, 2);
    }
    __half(double f) {
        _Float16 v = (_Float16)f;
        memcpy(&bits_, &v, 2);
    }
    template <class T, class = std::enable_if_t<std::is_integral_v<T>>> __half(T i) : __half((float)i) {}
    operator float() const {
        _Float16 v;
        memcpy(&v, &bits_, 2);
        return (float)v;
    }
    operator __half_raw() const { return {bits_}; }
    __half& operator+=(__half o) { return *this = __half((float)*this + (float)o); }
    __half& operator-=(__half o) { return *this = __half((float)*this - (float)o); }
    __half& operator*=(__half o) { return *this = __half((float)*this * (float)o); }
    __half& operator/=(__half o) { return *this = __half((float)*this / (float)o); }
};
typedef __half half;
inline __half operator+(__half a, __half b) { return __half((float)a + (float)b); }
inline __half operator-(__half a, __half b) { return __half((float)a - (float)b); }
inline __half operator*(__half a, __half b) { return __half((float)a * (float)b); }
inline __half operator/(__half a, __half b) { return __half((float)a / (float)b); }
inline __half operator-(__half a) { return __half_raw{(unsigned short)(a.bits_ ^ 0x8000)}; }
inline bool operator==(__half a, __half b) { return (float)a == (float)b; }
inline bool operator!=(__half a, __half b) { return (float)a != (float)b; }
inline bool operator<(__half a, __half b) { return (float)a < (float)b; }
inline bool operator>(__half a, __half b) { return (float)a > (float)b; }
inline bool operator<=(__half a, __half b) { return (float)a <= (float)b; }
inline bool operator>=(__half a, __half b) { return (float)a >= (float)b; }
inline float __half2float(__half h) { return h; }
inline __half __float2half(float f) { return f; }
inline __half __float2half_rn(float f) { return f; }
inline __half __double2half(double f) { return f; }
inline __half __int2half_rn(int i) { return (float)i; }
inline unsigned short __half_as_ushort(__half h) { return h.bits_; }
inline __half __ushort_as_half(unsigned short v) { return __half_raw{v}; }
inline __half __hadd(__half a, __half b) { return a + b; }
inline __half __hsub(__half a, __half b) { return a - b; }
inline __half __hmul(__half a, __half b) { return a * b; }
inline __half __hdiv(__half a, __half b) { return a / b; }
inline __half __hfma(__half a, __half b, __half c) { return __half((float)((double)(float)a * (float)b + (float)c)); }
inline bool __hisnan(__half a) { return std::isnan((float)a); }
inline __half hexp(__half a) { return std::exp((float)a); }
inline __half hsqrt(__half a) { return std::sqrt((float)a); }
struct alignas(4) __half2 {
    __half x, y;
};
typedef __half2 half2;
inline __half2 __floats2half2_rn(float a, float b) { return {a, b}; }
inline __half2 __halves2half2(__half a, __half b) { return {a, b}; }
inline float2 __half22float2(__half2 h) { return {h.x, h.y}; }
inline float __low2float(__half2 h) { return h.x; }
inline float __high2float(__half2 h) { return h.y; }
inline __half2 __hadd2(__half2 a, __half2 b) { return {a.x + b.x, a.y + b.y}; }
inline __half2 __hmul2(__half2 a, __half2 b) { return {a.x * b.x, a.y * b.y}; }
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }
