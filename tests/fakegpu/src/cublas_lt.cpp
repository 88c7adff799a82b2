// cublasLt: one matrix product, whose epilogue adds a bias, applies GELU or ReLU, or computes their gradients.
#include <cstring>
#include <map>
#include <vector>
#include "gemm.h"

namespace fakegpu {

struct Description {
    int compute = COMPUTE_32F, scale_type = R_32F, transpose_a = 0, transpose_b = 0, epilogue = 1, pointer_mode = 0;
    int bias_type = -1, aux_type = -1; // -1: as d's
    void *bias = nullptr, *aux = nullptr;
    int64_t ld_aux = 0, stride_bias = 0, stride_aux = 0;
};

struct Layout {
    int type, order = 0, batch = 1;
    uint64_t rows, columns;
    int64_t ld, stride = 0;
};

using Preferences = std::map<int, std::vector<char>>;

struct Heuristic { // cublasLtMatmulHeuristicResult_t
    uint64_t algorithm[8];
    size_t workspace;
    int status;
    float waves;
    int reserved[4];
};

struct Field {
    void* place = nullptr;
    size_t size = 0;
};

template <class T> static Field field(T& member) { return {&member, sizeof member}; }

static Field field_of(Description& d, int attribute) { // cublasLtMatmulDescAttributes_t
    switch (attribute) {
    case 0: return field(d.compute);
    case 1: return field(d.scale_type);
    case 2: return field(d.pointer_mode);
    case 3: return field(d.transpose_a);
    case 4: return field(d.transpose_b);
    case 7: return field(d.epilogue);
    case 8: return field(d.bias);
    case 10: return field(d.stride_bias);
    case 11: return field(d.aux);
    case 12: return field(d.ld_aux);
    case 13: return field(d.stride_aux);
    case 22: return field(d.aux_type);
    case 26: return field(d.bias_type);
    default: return {};
    }
}

static Field field_of(Layout& l, int attribute) { // cublasLtMatrixLayoutAttribute_t
    switch (attribute) {
    case 0: return field(l.type);
    case 1: return field(l.order);
    case 2: return field(l.rows);
    case 3: return field(l.columns);
    case 4: return field(l.ld);
    case 5: return field(l.batch);
    case 6: return field(l.stride);
    default: return {};
    }
}

static int set(Field field, const void* value, size_t size) {
    if (!field.place) return NOT_SUPPORTED;
    if (size < field.size) return INVALID_VALUE;
    memcpy(field.place, value, field.size);
    return SUCCESS;
}

static int get(Field field, void* value, size_t size, size_t* written) {
    if (!field.place) return INVALID_VALUE;
    if (written) *written = field.size;
    if (size >= field.size && value) memcpy(value, field.place, field.size);
    return SUCCESS;
}

} // namespace fakegpu

using namespace fakegpu;

extern "C" {

int cublasGetProperty(int which, int* value);

int cublasLtCreate(void** handle) {
    *handle = new char;
    return SUCCESS;
}

int cublasLtDestroy(void* handle) {
    delete (char*)handle;
    return SUCCESS;
}

size_t cublasLtGetVersion() { return 120900; }
size_t cublasLtGetCudartVersion() { return 12090; }
int cublasLtGetProperty(int which, int* value) { return cublasGetProperty(which, value); }

const char* cublasLtGetStatusName(int status) {
    return status == SUCCESS         ? "CUBLAS_STATUS_SUCCESS"
           : status == INVALID_VALUE ? "CUBLAS_STATUS_INVALID_VALUE"
           : status == NOT_SUPPORTED ? "CUBLAS_STATUS_NOT_SUPPORTED"
                                     : "CUBLAS_STATUS";
}

const char* cublasLtGetStatusString(int status) { return cublasLtGetStatusName(status); }

int cublasLtMatmulDescCreate(Description** description, int compute, int scale_type) {
    *description = new Description;
    (*description)->compute = compute;
    (*description)->scale_type = scale_type;
    return SUCCESS;
}

int cublasLtMatmulDescDestroy(Description* description) {
    delete description;
    return SUCCESS;
}

int cublasLtMatmulDescSetAttribute(Description* description, int attribute, const void* value, size_t size) {
    return set(field_of(*description, attribute), value, size);
}

int cublasLtMatmulDescGetAttribute(Description* description, int attribute, void* value, size_t size, size_t* written) {
    return get(field_of(*description, attribute), value, size, written);
}

int cublasLtMatrixLayoutCreate(Layout** layout, int type, uint64_t rows, uint64_t columns, int64_t ld) {
    *layout = new Layout{type, 0, 1, rows, columns, ld};
    return SUCCESS;
}

int cublasLtMatrixLayoutDestroy(Layout* layout) {
    delete layout;
    return SUCCESS;
}

int cublasLtMatrixLayoutSetAttribute(Layout* layout, int attribute, const void* value, size_t size) {
    return set(field_of(*layout, attribute), value, size);
}

int cublasLtMatrixLayoutGetAttribute(Layout* layout, int attribute, void* value, size_t size, size_t* written) {
    return get(field_of(*layout, attribute), value, size, written);
}

int cublasLtMatmulPreferenceCreate(Preferences** preferences) {
    *preferences = new Preferences;
    return SUCCESS;
}

int cublasLtMatmulPreferenceDestroy(Preferences* preferences) {
    delete preferences;
    return SUCCESS;
}

int cublasLtMatmulPreferenceSetAttribute(Preferences* preferences, int attribute, const void* value, size_t size) {
    (*preferences)[attribute].assign((const char*)value, (const char*)value + size);
    return SUCCESS;
}

int cublasLtMatmulAlgoGetHeuristic(void*, Description*, Layout*, Layout*, Layout*, Layout*, Preferences*, int requested,
                                   Heuristic* results, int* returned) {
    if (requested < 1) return INVALID_VALUE;
    *results = {};
    results->waves = 1;
    *returned = 1;
    return SUCCESS;
}

int cublasLtMatmul(void*, Description* description, const void* alpha, const void* a, Layout* a_layout, const void* b,
                   Layout* b_layout, const void* beta, const void* c, Layout* c_layout, void* d, Layout* d_layout,
                   const void*, void*, size_t, void* stream) {
    const Description& how = *description;
    const Layout &A = *a_layout, &B = *b_layout, &C = c_layout ? *c_layout : *d_layout, &D = *d_layout;
    if (A.order || B.order || D.order) {
        fakegpu_missing("cublasLtMatmul with a row-major layout");
        return NOT_SUPPORTED;
    }
    Gemm g{};
    g.transpose_a = how.transpose_a;
    g.transpose_b = how.transpose_b;
    g.m = D.rows;
    g.n = D.columns;
    g.k = how.transpose_a ? A.rows : A.columns;
    if ((how.transpose_a ? A.columns : A.rows) != D.rows || (how.transpose_b ? B.columns : B.rows) != (uint64_t)g.k ||
        (how.transpose_b ? B.rows : B.columns) != D.columns || A.batch != D.batch || B.batch != D.batch)
        return INVALID_VALUE;
    g.a = a;
    g.b = b;
    g.c = c ? c : d;
    g.d = d;
    g.a_type = A.type;
    g.b_type = B.type;
    g.c_type = D.type;
    g.lda = A.ld;
    g.ldb = B.ld;
    g.ldc = C.ld;
    g.ldd = D.ld;
    g.stride_a = A.stride;
    g.stride_b = B.stride;
    g.stride_c = C.stride;
    g.stride_d = D.stride;
    g.batch = D.batch;
    g.tf32 = how.compute == COMPUTE_32F_FAST_TF32;
    if (how.pointer_mode) {
        g.alpha_on_device = alpha;
        g.beta_on_device = beta;
    } else if (how.scale_type == R_64F) {
        g.alpha = *(const double*)alpha;
        g.beta = *(const double*)beta;
    } else if (how.scale_type == R_32F) {
        g.alpha = *(const float*)alpha;
        g.beta = *(const float*)beta;
    } else {
        fakegpu_missing("cublasLtMatmul with factors that are neither float nor double");
        return NOT_SUPPORTED;
    }
    g.epilogue = how.epilogue == 1 ? 0 : how.epilogue;
    g.bias = how.bias;
    g.aux = how.aux;
    g.ld_aux = how.ld_aux;
    g.stride_aux = how.stride_aux;
    g.stride_bias = how.stride_bias;
    g.bias_type = how.bias_type >= 0 ? how.bias_type : D.type;
    g.aux_type = how.aux_type >= 0 ? how.aux_type : D.type;
    if (g.epilogue && g.a_type == R_64F) return NOT_SUPPORTED;
    if ((g.epilogue & (EPILOGUE_AUX | EPILOGUE_DGELU | EPILOGUE_DRELU)) && (!g.aux || g.ld_aux < g.m))
        return INVALID_VALUE;
    if ((g.epilogue & (EPILOGUE_BIAS | EPILOGUE_BGRAD | EPILOGUE_BGRADA | EPILOGUE_BGRADB)) && !g.bias)
        return INVALID_VALUE;
    return perform_gemm(stream, "cublasLtMatmul", g);
}
}
