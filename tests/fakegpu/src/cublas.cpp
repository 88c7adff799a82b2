// cuBLAS, for real numbers: the functions that CuPy's matmul, dot, tensordot and transposed copies call, and those of
// scratchvit/kernels/cuda/blas.py.
#include <algorithm>
#include <cstring>
#include <vector>
#include "gemm.h"

namespace fakegpu {

struct Handle {
    void* stream = nullptr;
    int math_mode = 0, pointer_mode = 0;
};

static const int TF32_TENSOR_OP_MATH = 3, POINTER_MODE_DEVICE = 1;

static Gemm describe(const Handle& handle, int ta, int tb, int m, int n, int k, const void* alpha, const void* a,
                     int a_type, int lda, const void* b, int b_type, int ldb, const void* beta, void* c, int c_type,
                     int ldc) {
    Gemm g{};
    g.transpose_a = ta;
    g.transpose_b = tb;
    g.m = m;
    g.n = n;
    g.k = k;
    g.a = a;
    g.b = b;
    g.c = g.d = c;
    g.a_type = a_type;
    g.b_type = b_type;
    g.c_type = c_type;
    g.lda = lda;
    g.ldb = ldb;
    g.ldc = g.ldd = ldc;
    g.batch = 1;
    g.tf32 = a_type == R_32F && handle.math_mode == TF32_TENSOR_OP_MATH;
    if (handle.pointer_mode == POINTER_MODE_DEVICE) {
        g.alpha_on_device = alpha;
        g.beta_on_device = beta;
    } else {
        g.alpha = a_type == R_64F ? *(const double*)alpha : *(const float*)alpha;
        g.beta = a_type == R_64F ? *(const double*)beta : *(const float*)beta;
    }
    return g;
}

static void set_strides(Gemm& g, long long a, long long b, long long c, int batch) {
    g.stride_a = a;
    g.stride_b = b;
    g.stride_c = g.stride_d = c;
    g.batch = batch;
}

// c = alpha op(a) + beta op(b)
template <class T> struct Geam {
    int transpose_a, transpose_b, m, n, lda, ldb, ldc;
    T alpha, beta;
    const T *a, *b;
    T* c;
};

template <class T> static T entry(const T* a, bool transpose, int ld, int i, int j) {
    return transpose ? a[j + (size_t)i * ld] : a[i + (size_t)j * ld];
}

template <class T> static void add_matrices(void* argument) {
    const Geam<T>& g = *(const Geam<T>*)argument;
    std::vector<T> sums((size_t)g.m * g.n); // c may be a or b
    for (int j = 0; j < g.n; j++)
        for (int i = 0; i < g.m; i++) {
            T sum = 0;
            if (g.alpha != 0) sum += g.alpha * entry(g.a, g.transpose_a, g.lda, i, j);
            if (g.beta != 0) sum += g.beta * entry(g.b, g.transpose_b, g.ldb, i, j);
            sums[i + (size_t)j * g.m] = sum;
        }
    for (int j = 0; j < g.n; j++) memcpy(g.c + (size_t)j * g.ldc, &sums[(size_t)j * g.m], g.m * sizeof(T));
}

template <class T> static int perform_geam(void* stream, const char* name, Geam<T> g) {
    if (g.m < 0 || g.n < 0 || g.lda < std::max(1, g.transpose_a ? g.n : g.m) ||
        g.ldb < std::max(1, g.transpose_b ? g.n : g.m) || g.ldc < std::max(1, g.m))
        return INVALID_VALUE;
    if (!g.m || !g.n) return SUCCESS;
    return fakegpu_perform(stream, "gemm", name, g.m, g.n, add_matrices<T>, &g, sizeof g) ? INTERNAL_ERROR : SUCCESS;
}

} // namespace fakegpu

using namespace fakegpu;

extern "C" {

int cublasCreate_v2(Handle** handle) {
    *handle = new Handle;
    return SUCCESS;
}

int cublasDestroy_v2(Handle* handle) {
    delete handle;
    return SUCCESS;
}

int cublasGetVersion_v2(Handle*, int* version) {
    *version = 120900;
    return SUCCESS;
}

int cublasGetProperty(int which, int* value) { // major, minor, patch
    *value = which == 0 ? 12 : which == 1 ? 9 : 0;
    return SUCCESS;
}

int cublasSetStream_v2(Handle* handle, void* stream) {
    if (!handle) return NOT_INITIALIZED;
    handle->stream = stream;
    return SUCCESS;
}

int cublasGetStream_v2(Handle* handle, void** stream) {
    *stream = handle->stream;
    return SUCCESS;
}

int cublasSetPointerMode_v2(Handle* handle, int mode) {
    handle->pointer_mode = mode;
    return SUCCESS;
}

int cublasGetPointerMode_v2(Handle* handle, int* mode) {
    *mode = handle->pointer_mode;
    return SUCCESS;
}

int cublasSetMathMode(Handle* handle, int mode) {
    handle->math_mode = mode;
    return SUCCESS;
}

int cublasGetMathMode(Handle* handle, int* mode) {
    *mode = handle->math_mode;
    return SUCCESS;
}

int cublasSetWorkspace_v2(Handle*, void*, size_t) { return SUCCESS; }

int cublasGemmEx(Handle* handle, int ta, int tb, int m, int n, int k, const void* alpha, const void* a, int a_type,
                 int lda, const void* b, int b_type, int ldb, const void* beta, void* c, int c_type, int ldc,
                 int compute, int) {
    Gemm g = describe(*handle, ta, tb, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta, c, c_type, ldc);
    g.tf32 |= a_type == R_32F && compute == COMPUTE_32F_FAST_TF32;
    return perform_gemm(handle->stream, "cublasGemmEx", g);
}

int cublasGemmStridedBatchedEx(Handle* handle, int ta, int tb, int m, int n, int k, const void* alpha, const void* a,
                               int a_type, int lda, long long stride_a, const void* b, int b_type, int ldb,
                               long long stride_b, const void* beta, void* c, int c_type, int ldc, long long stride_c,
                               int batch, int compute, int) {
    Gemm g = describe(*handle, ta, tb, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta, c, c_type, ldc);
    g.tf32 |= a_type == R_32F && compute == COMPUTE_32F_FAST_TF32;
    set_strides(g, stride_a, stride_b, stride_c, batch);
    return perform_gemm(handle->stream, "cublasGemmStridedBatchedEx", g);
}

int cublasGemmBatchedEx(Handle* handle, int ta, int tb, int m, int n, int k, const void* alpha, const void* const* a,
                        int a_type, int lda, const void* const* b, int b_type, int ldb, const void* beta,
                        void* const* c, int c_type, int ldc, int batch, int compute, int) {
    Gemm g = describe(*handle, ta, tb, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta, (void*)c, c_type, ldc);
    g.tf32 |= a_type == R_32F && compute == COMPUTE_32F_FAST_TF32;
    g.batch = batch;
    g.pointers = true;
    return perform_gemm(handle->stream, "cublasGemmBatchedEx", g);
}

#define FUNCTIONS_OF(X, T, type)                                                                                       \
    int cublas##X##gemm_v2(Handle* handle, int ta, int tb, int m, int n, int k, const T* alpha, const T* a, int lda,   \
                           const T* b, int ldb, const T* beta, T* c, int ldc) {                                        \
        Gemm g = describe(*handle, ta, tb, m, n, k, alpha, a, type, lda, b, type, ldb, beta, c, type, ldc);            \
        return perform_gemm(handle->stream, "cublas" #X "gemm", g);                                                    \
    }                                                                                                                  \
    int cublas##X##gemmStridedBatched(Handle* handle, int ta, int tb, int m, int n, int k, const T* alpha, const T* a, \
                                      int lda, long long stride_a, const T* b, int ldb, long long stride_b,            \
                                      const T* beta, T* c, int ldc, long long stride_c, int batch) {                   \
        Gemm g = describe(*handle, ta, tb, m, n, k, alpha, a, type, lda, b, type, ldb, beta, c, type, ldc);            \
        set_strides(g, stride_a, stride_b, stride_c, batch);                                                           \
        return perform_gemm(handle->stream, "cublas" #X "gemmStridedBatched", g);                                      \
    }                                                                                                                  \
    int cublas##X##gemmBatched(Handle* handle, int ta, int tb, int m, int n, int k, const T* alpha, const T* const* a, \
                               int lda, const T* const* b, int ldb, const T* beta, T* const* c, int ldc, int batch) {  \
        Gemm g = describe(*handle, ta, tb, m, n, k, alpha, a, type, lda, b, type, ldb, beta, (void*)c, type, ldc);     \
        g.batch = batch;                                                                                               \
        g.pointers = true;                                                                                             \
        return perform_gemm(handle->stream, "cublas" #X "gemmBatched", g);                                             \
    }                                                                                                                  \
    int cublas##X##geam(Handle* handle, int ta, int tb, int m, int n, const T* alpha, const T* a, int lda,             \
                        const T* beta, const T* b, int ldb, T* c, int ldc) {                                           \
        Geam<T> g{ta, tb, m, n, lda, ldb, ldc, *alpha, *beta, a, b, c};                                                \
        return perform_geam(handle->stream, "cublas" #X "geam", g);                                                    \
    }

FUNCTIONS_OF(S, float, R_32F)
FUNCTIONS_OF(D, double, R_64F)
}
