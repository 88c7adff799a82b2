// One matrix product, or a batch of them, as cuBLAS describes it: matrices are column-major.
#pragma once
#include <cstdint>
#include "interface.h"

namespace fakegpu {

// Numbers of CUDA's own enumerations; cuBLAS' headers are not in the wheels that the build installs.
enum DataType { R_32F = 0, R_64F = 1, R_16F = 2, R_16BF = 14 };
enum Status { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, INTERNAL_ERROR = 14, NOT_SUPPORTED = 15 };
enum Compute { COMPUTE_32F = 68, COMPUTE_32F_FAST_TF32 = 77 };
enum Epilogue { // of cublasLt, as bits
    EPILOGUE_RELU = 2,
    EPILOGUE_BIAS = 4,
    EPILOGUE_DRELU = 8,
    EPILOGUE_BGRAD = 16,
    EPILOGUE_GELU = 32,
    EPILOGUE_DGELU = 64,
    EPILOGUE_AUX = 128,
    EPILOGUE_BGRADA = 256,
    EPILOGUE_BGRADB = 512,
};

// d = epilogue(alpha op(a) op(b) + beta c), with op(a) (m, k), op(b) (k, n), and c, d (m, n)
struct Gemm {
    int transpose_a, transpose_b; // cublasOperation_t
    int64_t m, n, k;
    double alpha, beta;
    const void *alpha_on_device, *beta_on_device; // instead of the two, if not null
    const void *a, *b, *c;
    void* d;
    int a_type, b_type, c_type; // DataType; d's is c's
    int64_t lda, ldb, ldc, ldd;
    int batch;
    int64_t stride_a, stride_b, stride_c, stride_d; // from one of the batch to the next
    bool pointers;                                  // a, b and d are arrays of pointers, one for each of the batch
    bool tf32;                                      // inputs are rounded to TF32

    int epilogue;
    void *bias, *aux;
    int bias_type, aux_type;
    int64_t ld_aux, stride_aux, stride_bias;
};

int size_of(int type);                                              // bytes, 0 for types that are not known
int perform_gemm(void* stream, const char* name, const Gemm& gemm); // a Status

} // namespace fakegpu
