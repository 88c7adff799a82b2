#define INF __int_as_float(0x7f800000) // NVRTC knows no INFINITY
// One block a row. 128 threads; sums by warp shuffles, then over the warps in shared memory.
template <class F> __device__ float reduce_block(float value, F combine, float* scratch) {
    for (int by = 16; by; by >>= 1) value = combine(value, __shfl_xor_sync(0xffffffffu, value, by));
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
    __syncthreads();
    value = scratch[0];
    for (int w = 1; w < blockDim.x / 32; w++) value = combine(value, scratch[w]);
    __syncthreads();
    return value;
}
struct Sum {
    __device__ float operator()(float a, float b) const { return a + b; }
};
struct Max {
    __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

extern "C" __global__ void softmax_rows(const float* x, float* y, int D) {
    __shared__ float scratch[32];
    x += (long long)blockIdx.x * D;
    y += (long long)blockIdx.x * D;
    float highest = -INF, total = 0;
    for (int i = threadIdx.x; i < D; i += blockDim.x) highest = fmaxf(highest, x[i]);
    highest = reduce_block(highest, Max(), scratch);
    for (int i = threadIdx.x; i < D; i += blockDim.x) total += expf(x[i] - highest);
    total = reduce_block(total, Sum(), scratch);
    for (int i = threadIdx.x; i < D; i += blockDim.x) y[i] = expf(x[i] - highest) / total;
}

extern "C" __global__ void layer_norm_rows(const float* x, const float* weight, const float* bias, float* y,
                                           float* stats, int D, float eps) {
    __shared__ float scratch[32];
    x += (long long)blockIdx.x * D;
    y += (long long)blockIdx.x * D;
    float total = 0, squares = 0;
    for (int i = threadIdx.x; i < D; i += blockDim.x) total += x[i];
    float mean = reduce_block(total, Sum(), scratch) / D;
    for (int i = threadIdx.x; i < D; i += blockDim.x) {
        float c = x[i] - mean;
        squares += c * c;
    }
    float r = rsqrtf(reduce_block(squares, Sum(), scratch) / D + eps);
    for (int i = threadIdx.x; i < D; i += blockDim.x) y[i] = (x[i] - mean) * r * weight[i] + bias[i];
    if (threadIdx.x == 0) {
        stats[2 * blockIdx.x] = mean;
        stats[2 * blockIdx.x + 1] = r;
    }
}

// FlashAttention, forward (Dao et al., arXiv 2205.14135, algorithm 1). q (BH, N, 64), k and v (BH, M, 64).
// A block of 128 threads takes 32 queries of a matrix, 4 threads a query, 16 of the 64 numbers each; keys come 32 at a
// time.
#define ROWS 32
#define KEYS 32
#define D 64
extern "C" __global__ void flash_forward(const float* q, const float* k, const float* v, float* y, float* L, int N,
                                         int M, float scale) {
    __shared__ float K[KEYS][D + 1], V[KEYS][D + 1];
    int row = threadIdx.x / 4, part = threadIdx.x % 4, i = blockIdx.x * ROWS + row;
    q += (long long)blockIdx.y * N * D;
    k += (long long)blockIdx.y * M * D;
    v += (long long)blockIdx.y * M * D;
    float mine[16], out[16], highest = -INF, total = 0;
    for (int c = 0; c < 16; c++) {
        mine[c] = i < N ? q[(long long)i * D + 4 * c + part] * scale : 0;
        out[c] = 0;
    }
    for (int first = 0; first < M; first += KEYS) {
        __syncthreads();
        for (int e = threadIdx.x; e < KEYS * D; e += blockDim.x) {
            int j = first + e / D;
            K[e / D][e % D] = j < M ? k[(long long)j * D + e % D] : 0;
            V[e / D][e % D] = j < M ? v[(long long)j * D + e % D] : 0;
        }
        __syncthreads();
        float s[KEYS], block_highest = highest;
        for (int j = 0; j < KEYS; j++) {
            float dot = 0;
            for (int c = 0; c < 16; c++) dot += mine[c] * K[j][4 * c + part];
            dot += __shfl_xor_sync(0xffffffffu, dot, 1);
            dot += __shfl_xor_sync(0xffffffffu, dot, 2);
            s[j] = first + j < M ? dot : -INF;
            block_highest = fmaxf(block_highest, s[j]);
        }
        float fade = expf(highest - block_highest);
        total *= fade;
        for (int c = 0; c < 16; c++) out[c] *= fade;
        for (int j = 0; j < KEYS; j++) {
            float p = expf(s[j] - block_highest);
            total += p;
            for (int c = 0; c < 16; c++) out[c] += p * V[j][4 * c + part];
        }
        highest = block_highest;
    }
    if (i < N) {
        for (int c = 0; c < 16; c++) y[((long long)blockIdx.y * N + i) * D + 4 * c + part] = out[c] / total;
        if (part == 0) L[(long long)blockIdx.y * N + i] = highest + logf(total);
    }
}
