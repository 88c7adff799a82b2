// Settings, counters, errors, and what CUDA tells of its version and its device.
#include <dlfcn.h>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include "device.h"

extern "C" {
FakegpuCounts fakegpu_counts;
int fakegpu_execute = 1;
void (*fakegpu_on_event)(const char* what, const char* name, long a, long b) = nullptr; // a tracer in Python

void fakegpu_missing(const char* name) {
    fakegpu::complain("%s is not in the stand-in; it answers 'not supported'", name);
}
}

namespace fakegpu {

std::string setting(const char* name, const char* otherwise) {
    const char* value = getenv(name);
    return value && *value ? value : otherwise;
}

const int poison = std::stoi(setting("FAKEGPU_POISON", "2"));
const int guard = std::stoi(setting("FAKEGPU_GUARD", "0"));
const bool delayed = setting("FAKEGPU_ASYNC", "0") == "1";
const size_t memory_limit = std::stoul(setting("FAKEGPU_MEMORY_MB", "143360")) << 20;
std::recursive_mutex state_mutex;
static const int devices = std::stoi(setting("FAKEGPU_DEVICES", "1"));
static thread_local cudaError_t last_error = cudaSuccess;
static thread_local int current_device = 0;

cudaError_t fail(cudaError_t error) {
    fakegpu_counts.errors++;
    return last_error = error;
}

void complain(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("fakegpu: ", stderr);
    vfprintf(stderr, format, arguments);
    fputs("\n", stderr);
    va_end(arguments);
}

void event(const char* what, const char* name, long a, long b) {
    if (fakegpu_on_event) fakegpu_on_event(what, name, a, b);
}

static const int VERSION = 12090; // CUDA 12.9

} // namespace fakegpu

using namespace fakegpu;

extern "C" {

// --- the driver API: one device, one context ---

CUresult cuInit(unsigned) { return CUDA_SUCCESS; }

CUresult cuDriverGetVersion(int* version) {
    *version = VERSION;
    return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char** name) {
    *name = error == CUDA_SUCCESS               ? "CUDA_SUCCESS"
            : error == CUDA_ERROR_INVALID_VALUE ? "CUDA_ERROR_INVALID_VALUE"
            : error == CUDA_ERROR_NOT_FOUND     ? "CUDA_ERROR_NOT_FOUND"
            : error == CUDA_ERROR_INVALID_IMAGE ? "CUDA_ERROR_INVALID_IMAGE"
            : error == CUDA_ERROR_NOT_SUPPORTED ? "CUDA_ERROR_NOT_SUPPORTED"
                                                : "CUDA_ERROR";
    return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char** text) {
    static thread_local char buffer[64];
    snprintf(buffer, sizeof buffer, "driver error %d of the stand-in", (int)error);
    *text = buffer;
    return CUDA_SUCCESS;
}

CUresult cuGetProcAddress_v2(const char* name, void** function, int, cuuint64_t,
                             CUdriverProcAddressQueryResult* result) {
    *function = dlsym(RTLD_DEFAULT, (std::string(name) + "_v2").c_str());
    if (!*function) *function = dlsym(RTLD_DEFAULT, name);
    if (result) *result = *function ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    return *function ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

CUresult cuGetExportTable(const void** table, const CUuuid*) { // NVRTC asks for it
    *table = nullptr;
    return CUDA_ERROR_NOT_FOUND;
}

static const CUcontext CONTEXT = (CUcontext)1;

CUresult cuCtxGetCurrent(CUcontext* context) {
    *context = CONTEXT;
    return CUDA_SUCCESS;
}

CUresult cuCtxCreate_v2(CUcontext* context, unsigned, CUdevice) { return cuCtxGetCurrent(context); }
CUresult cuStreamGetCtx(CUstream, CUcontext* context) { return cuCtxGetCurrent(context); }
CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
CUresult cuCtxDestroy_v2(CUcontext) { return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice) { return CUDA_SUCCESS; }

CUresult cuCtxGetDevice(CUdevice* device) {
    *device = 0;
    return CUDA_SUCCESS;
}

// --- the runtime API ---

const char* cudaGetErrorName(cudaError_t error) {
#define NAME(value)                                                                                                    \
    if (error == value) return #value;
    NAME(cudaSuccess);
    NAME(cudaErrorInvalidValue);
    NAME(cudaErrorMemoryAllocation);
    NAME(cudaErrorNotReady);
    NAME(cudaErrorNotSupported);
    NAME(cudaErrorIllegalState);
    NAME(cudaErrorInvalidDevice);
    NAME(cudaErrorInvalidResourceHandle);
    NAME(cudaErrorCapturedEvent);
    NAME(cudaErrorStreamCaptureUnsupported);
    NAME(cudaErrorStreamCaptureInvalidated);
    NAME(cudaErrorStreamCaptureMerge);
    NAME(cudaErrorStreamCaptureUnmatched);
    NAME(cudaErrorStreamCaptureUnjoined);
    NAME(cudaErrorStreamCaptureIsolation);
    NAME(cudaErrorStreamCaptureImplicit);
    NAME(cudaErrorStreamCaptureWrongThread);
#undef NAME
    return "cudaErrorUnknown";
}

const char* cudaGetErrorString(cudaError_t error) {
    static thread_local char buffer[64];
    snprintf(buffer, sizeof buffer, "runtime error %d of the stand-in", (int)error);
    return buffer;
}

cudaError_t cudaPeekAtLastError() { return last_error; }

cudaError_t cudaGetLastError() {
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaDriverGetVersion(int* version) {
    *version = VERSION;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
    *version = VERSION;
    return cudaSuccess;
}

// More than one device is for processes that use one each: they differ in their number only.
cudaError_t cudaGetDeviceCount(int* count) {
    *count = devices;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
    *device = current_device;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= devices) return fail(cudaErrorInvalidDevice);
    current_device = device;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties_v2(cudaDeviceProp* properties, int) { // an H100's, as far as CuPy asks
    *properties = {};
    strcpy(properties->name, "Stand-in on the CPU (as compute capability 9.0)");
    properties->major = 9;
    properties->multiProcessorCount = 132;
    properties->totalGlobalMem = memory_limit;
    properties->maxThreadsPerBlock = 1024;
    properties->maxThreadsPerMultiProcessor = 2048;
    properties->sharedMemPerBlock = 48 << 10;
    properties->sharedMemPerBlockOptin = 232448;
    properties->l2CacheSize = 50 << 20;
    properties->warpSize = 32;
    properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = 1024;
    properties->maxThreadsDim[2] = 64;
    properties->maxGridSize[0] = 2147483647;
    properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    cudaDeviceProp properties;
    cudaGetDeviceProperties_v2(&properties, 0);
    switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = properties.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = properties.minor; break;
    case cudaDevAttrMultiProcessorCount: *value = properties.multiProcessorCount; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = properties.maxThreadsPerBlock; break;
    case cudaDevAttrMaxBlockDimX: *value = properties.maxThreadsDim[0]; break;
    case cudaDevAttrMaxBlockDimY: *value = properties.maxThreadsDim[1]; break;
    case cudaDevAttrMaxBlockDimZ: *value = properties.maxThreadsDim[2]; break;
    case cudaDevAttrMaxGridDimX: *value = properties.maxGridSize[0]; break;
    case cudaDevAttrMaxGridDimY: *value = properties.maxGridSize[1]; break;
    case cudaDevAttrMaxGridDimZ: *value = properties.maxGridSize[2]; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = properties.sharedMemPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = properties.sharedMemPerBlockOptin; break;
    case cudaDevAttrWarpSize: *value = properties.warpSize; break;
    default: *value = 0; // above all: no memory pools of CUDA's own
    }
    return cudaSuccess;
}

cudaError_t cudaDeviceGetByPCIBusId(int* device, const char*) { return cudaGetDevice(device); }

cudaError_t cudaDeviceGetPCIBusId(char* id, int size, int) {
    snprintf(id, size, "0000:00:00.0");
    return cudaSuccess;
}

cudaError_t cudaDeviceGetLimit(size_t* value, cudaLimit) {
    *value = 1 << 20;
    return cudaSuccess;
}

cudaError_t cudaDeviceSetLimit(cudaLimit, size_t) { return cudaSuccess; }
cudaError_t cudaProfilerStart() { return cudaSuccess; }
cudaError_t cudaProfilerStop() { return cudaSuccess; }
}
