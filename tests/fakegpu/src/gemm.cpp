// Matrix products, by the OpenBLAS in NumPy's wheel.
#include "gemm.h"
#include <dlfcn.h>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace fakegpu {

// --- OpenBLAS ---

template <class T>
using BlasGemm = void (*)(int order, int transpose_a, int transpose_b, int64_t m, int64_t n, int64_t k, T alpha,
                          const T* a, int64_t lda, const T* b, int64_t ldb, T beta, T* c, int64_t ldc);
static BlasGemm<float> sgemm;
static BlasGemm<double> dgemm;
static const int COLUMN_MAJOR = 102;

static int blas_transpose(int operation) { return operation == 0 ? 111 : 112; }

// For Python: the path of NumPy's OpenBLAS. Returns whether it has what is needed.
extern "C" int fakegpu_use_openblas(const char* path) {
    if (void* library = dlopen(path, RTLD_NOW)) {
        sgemm = (BlasGemm<float>)dlsym(library, "scipy_cblas_sgemm64_");
        dgemm = (BlasGemm<double>)dlsym(library, "scipy_cblas_dgemm64_");
    }
    return sgemm && dgemm;
}

// --- numbers of 16 bits ---

template <class To, class From> static To bits(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To result;
    memcpy(&result, &value, sizeof result);
    return result;
}

int size_of(int type) {
    switch (type) {
    case R_32F: return 4;
    case R_64F: return 8;
    case R_16F:
    case R_16BF: return 2;
    default: return 0;
    }
}

static float load(const void* p, size_t i, int type) {
    if (type == R_32F) return ((const float*)p)[i];
    uint16_t half = ((const uint16_t*)p)[i];
    return type == R_16F ? (float)bits<_Float16>(half) : bits<float>((uint32_t)half << 16);
}

static void store(void* p, size_t i, int type, float value) {
    if (type == R_32F) {
        ((float*)p)[i] = value;
    } else if (type == R_16F) {
        ((uint16_t*)p)[i] = bits<uint16_t>((_Float16)value);
    } else { // bfloat16: to the nearest, ties to even
        uint32_t b = bits<uint32_t>(value);
        ((uint16_t*)p)[i] = std::isnan(value) ? 0x7fff : (b + 0x7fff + (b >> 16 & 1)) >> 16;
    }
}

static float round_to_tf32(float value) { // 10 bits of mantissa
    uint32_t b = bits<uint32_t>(value);
    return bits<float>((b + 0xfff + (b >> 13 & 1)) & ~0x1fffu);
}

// A matrix as float32, without gaps between its columns.
static std::vector<float> widen(const void* p, int type, int64_t rows, int64_t columns, int64_t ld, bool tf32) {
    std::vector<float> result(rows * columns);
    for (int64_t j = 0; j < columns; j++)
        for (int64_t i = 0; i < rows; i++) {
            float value = load(p, j * ld + i, type);
            result[j * rows + i] = tf32 ? round_to_tf32(value) : value;
        }
    return result;
}

// --- cublasLt's epilogues ---

static float gelu(float x) { // the approximation by tanh, as cublasLt's
    return 0.5f * x * (1 + std::tanh(0.7978845608f * (x + 0.044715f * x * x * x)));
}

static float gelu_slope(float x) {
    float t = std::tanh(0.7978845608f * (x + 0.044715f * x * x * x));
    return 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * 0.7978845608f * (1 + 3 * 0.044715f * x * x);
}

static bool get_bit(const char* bytes, int64_t i) { return bytes[i / 8] >> (i % 8) & 1; }

static void set_bit(char* bytes, int64_t i, bool value) {
    bytes[i / 8] = value ? bytes[i / 8] | 1 << (i % 8) : bytes[i / 8] & ~(1 << (i % 8));
}

// Apply the epilogue to `product` (m, n), and write it to d.
static void finish_with_epilogue(const Gemm& g, const std::vector<float>& product, char* bias, char* aux, void* d) {
    std::vector<float> sums(g.m);
    for (int64_t j = 0; j < g.n; j++)
        for (int64_t i = 0; i < g.m; i++) {
            float v = product[j * g.m + i];
            int64_t at = j * g.ld_aux + i;
            if (g.epilogue & EPILOGUE_BIAS) v += load(bias, i, g.bias_type);
            if (g.epilogue & EPILOGUE_DGELU)
                v *= gelu_slope(load(aux, at, g.aux_type));
            else if (g.epilogue & EPILOGUE_DRELU)
                v = get_bit(aux, at) ? v : 0;
            else if (g.epilogue & EPILOGUE_GELU) {
                if (g.epilogue & EPILOGUE_AUX) store(aux, at, g.aux_type, v);
                v = gelu(v);
            } else if (g.epilogue & EPILOGUE_RELU) {
                if (g.epilogue & EPILOGUE_AUX) set_bit(aux, at, v > 0);
                v = v > 0 ? v : 0;
            }
            sums[i] += v;
            store(d, j * g.ldd + i, g.c_type, v);
        }
    if (g.epilogue & EPILOGUE_BGRAD)
        for (int64_t i = 0; i < g.m; i++) store(bias, i, g.bias_type, sums[i]);
}

// --- one product of a batch ---

static void multiply_doubles(const Gemm& g, const void* a, const void* b, const void* c, void* d) {
    auto* result = (double*)d;
    if (c != d && g.beta)
        for (int64_t j = 0; j < g.n; j++) memcpy(result + j * g.ldd, (const double*)c + j * g.ldc, 8 * g.m);
    dgemm(COLUMN_MAJOR, blas_transpose(g.transpose_a), blas_transpose(g.transpose_b), g.m, g.n, g.k, g.alpha,
          (const double*)a, g.lda, (const double*)b, g.ldb, g.beta, result, g.ldd);
}

static void multiply(const Gemm& g, int index, const void* a, const void* b, const void* c, void* d) {
    if (g.a_type == R_64F) return multiply_doubles(g, a, b, c, d);
    float alpha = g.alpha_on_device ? *(const float*)g.alpha_on_device : (float)g.alpha;
    float beta = g.beta_on_device ? *(const float*)g.beta_on_device : (float)g.beta;
    int ta = blas_transpose(g.transpose_a), tb = blas_transpose(g.transpose_b);
    if (g.a_type == R_32F && g.b_type == R_32F && g.c_type == R_32F && !g.tf32 && !g.epilogue && c == d)
        return sgemm(COLUMN_MAJOR, ta, tb, g.m, g.n, g.k, alpha, (const float*)a, g.lda, (const float*)b, g.ldb, beta,
                     (float*)d, g.ldd);
    int64_t a_rows = g.transpose_a ? g.k : g.m, b_rows = g.transpose_b ? g.n : g.k;
    auto A = widen(a, g.a_type, a_rows, g.transpose_a ? g.m : g.k, g.lda, g.tf32);
    auto B = widen(b, g.b_type, b_rows, g.transpose_b ? g.k : g.n, g.ldb, g.tf32);
    auto product = beta ? widen(c, g.c_type, g.m, g.n, g.ldc, false) : std::vector<float>(g.m * g.n);
    sgemm(COLUMN_MAJOR, ta, tb, g.m, g.n, g.k, alpha, A.data(), std::max<int64_t>(a_rows, 1), B.data(),
          std::max<int64_t>(b_rows, 1), beta, product.data(), g.m);
    char* bias = (char*)g.bias + index * g.stride_bias * size_of(g.bias_type);
    char* aux = (char*)g.aux + index * g.stride_aux * size_of(g.aux_type);
    // The gradient of a bias that was added to an input of this product: sums over k.
    for (int64_t i = 0; (g.epilogue & EPILOGUE_BGRADA) && i < g.m; i++) {
        float sum = 0;
        for (int64_t l = 0; l < g.k; l++) sum += g.transpose_a ? A[i * a_rows + l] : A[l * a_rows + i];
        store(bias, i, g.bias_type, sum);
    }
    for (int64_t j = 0; (g.epilogue & EPILOGUE_BGRADB) && j < g.n; j++) {
        float sum = 0;
        for (int64_t l = 0; l < g.k; l++) sum += g.transpose_b ? B[l * b_rows + j] : B[j * b_rows + l];
        store(bias, j, g.bias_type, sum);
    }
    finish_with_epilogue(g, product, bias, aux, d);
}

static void multiply_batch(void* argument) {
    const Gemm& g = *(const Gemm*)argument;
    for (int i = 0; i < g.batch; i++) {
        if (g.pointers) {
            void* d = ((void* const*)g.d)[i];
            multiply(g, i, ((const void* const*)g.a)[i], ((const void* const*)g.b)[i], d, d);
        } else
            multiply(g, i, (const char*)g.a + g.stride_a * i * size_of(g.a_type),
                     (const char*)g.b + g.stride_b * i * size_of(g.b_type),
                     (const char*)g.c + g.stride_c * i * size_of(g.c_type),
                     (char*)g.d + g.stride_d * i * size_of(g.c_type));
    }
}

int perform_gemm(void* stream, const char* name, const Gemm& g) {
    if (!size_of(g.a_type) || !size_of(g.b_type) || !size_of(g.c_type)) return NOT_SUPPORTED;
    if (g.m < 0 || g.n < 0 || g.k < 0 || g.lda < std::max<int64_t>(1, g.transpose_a ? g.k : g.m) ||
        g.ldb < std::max<int64_t>(1, g.transpose_b ? g.n : g.k) || g.ldd < std::max<int64_t>(1, g.m) || g.batch < 0)
        return INVALID_VALUE;
    if (!g.m || !g.n || !g.batch) return SUCCESS;
    long size = (long)g.n << 32 | g.k;
    return fakegpu_perform(stream, "gemm", name, g.m * g.batch, size, multiply_batch, &g, sizeof g) ? INTERNAL_ERROR
                                                                                                    : SUCCESS;
}

} // namespace fakegpu
