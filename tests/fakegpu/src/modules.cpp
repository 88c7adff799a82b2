// The driver API's modules and launches. A module is a shared object that g++ made of the CUDA text
// (python/fakegpu/compiler.py); for each kernel NAME it has NAME__launch, NAME__nargs and NAME__sizes.
#include <dlfcn.h>
#include <cstring>
#include "device.h"

namespace fakegpu {

static const int LARGEST_SHARED = 232448, LARGEST_STATIC_SHARED = 48 << 10; // bytes a block, of compute capability 9.0

using Launcher = void (*)(void** arguments, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                          unsigned block_y, unsigned block_z, unsigned shared);

struct Function {
    std::string name;
    Launcher launch = nullptr;  // null if the text was not compiled, because work is only counted
    const int* sizes = nullptr; // of the arguments, in bytes
    int nargs = 0;
    int static_shared = 0;
    int most_dynamic_shared = LARGEST_STATIC_SHARED;
};

struct Module {
    void* handle = nullptr;
    std::map<std::string, Function*> functions;
};

static bool exceeds_limits(unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz) {
    return !gx || !gy || !gz || !bx || !by || !bz || (size_t)bx * by * bz > 1024 || bz > 64 || gx > 2147483647u ||
           gy > 65535 || gz > 65535;
}

} // namespace fakegpu

using namespace fakegpu;

extern "C" {

CUresult cuModuleLoadData(CUmodule* module, const void* image) {
    LOCK;
    fakegpu_counts.module_loads++;
    std::string text((const char*)image);
    auto* loaded = new Module;
    const std::string prefix = "FAKEGPU:"; // and the path; with no path nothing was compiled
    if (text.compare(0, prefix.size(), prefix)) {
        complain("a module that was not compiled for the stand-in");
        return CUDA_ERROR_INVALID_IMAGE;
    }
    std::string path = text.substr(prefix.size());
    if (!path.empty()) {
        loaded->handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (!loaded->handle) {
            complain("%s", dlerror());
            return CUDA_ERROR_INVALID_IMAGE;
        }
    }
    *module = (CUmodule)loaded;
    return CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; } // work that is not done yet may need it

CUresult cuModuleGetFunction(CUfunction* function, CUmodule handle, const char* name) {
    LOCK;
    auto* module = (Module*)handle;
    auto symbol = [&](const char* suffix) { return dlsym(module->handle, (std::string(name) + suffix).c_str()); };
    auto*& found = module->functions[name];
    if (!found) {
        auto* f = new Function{name};
        if (module->handle) {
            auto* count = (const int*)symbol("__nargs");
            auto* static_shared = (long (*)())dlsym(module->handle, "shim_static_shared");
            f->launch = (Launcher)symbol("__launch");
            f->sizes = (const int*)symbol("__sizes");
            if (!f->launch || !f->sizes || !count || !static_shared) return CUDA_ERROR_NOT_FOUND;
            f->nargs = *count;
            f->static_shared = static_shared();
        }
        found = f;
    }
    *function = (CUfunction)found;
    return CUDA_SUCCESS;
}

CUresult cuModuleGetGlobal_v2(CUdeviceptr* pointer, size_t* size, CUmodule handle, const char* name) {
    LOCK;
    auto* module = (Module*)handle;
    *pointer = module->handle ? (CUdeviceptr)dlsym(module->handle, name) : 0;
    auto* bytes = *pointer ? (const size_t*)dlsym(module->handle, (std::string(name) + "__bytes").c_str()) : nullptr;
    if (!bytes) return CUDA_ERROR_NOT_FOUND;
    if (size) *size = *bytes;
    blocks[(char*)*pointer] = {*bytes, nullptr, 0, true};
    return CUDA_SUCCESS;
}

CUresult cuLaunchKernel(CUfunction handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned shared, CUstream stream, void** params, void** extra) {
    auto* f = (Function*)handle;
    fakegpu_counts.launches++;
    event("launch", f->name.c_str(), (long)gx * gy * gz, (long)bx * by * bz);
    if (exceeds_limits(gx, gy, gz, bx, by, bz) || extra) {
        fakegpu_counts.errors++;
        return CUDA_ERROR_INVALID_VALUE;
    }
    if ((int)shared > f->most_dynamic_shared || f->static_shared > LARGEST_STATIC_SHARED ||
        f->static_shared + (int)shared > LARGEST_SHARED) {
        complain("%s asks for %u bytes of shared memory besides %d static ones", f->name.c_str(), shared,
                 f->static_shared);
        fakegpu_counts.errors++;
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!f->launch) return (CUresult)perform(stream_of(stream), f->name, [] {});
    watch_faults();
    // A queue and a graph keep the values of the arguments; what is done at once need not copy them.
    if (!delayed) {
        LOCK;
        if (captures.empty()) {
            if (fakegpu_execute) f->launch(params, gx, gy, gz, bx, by, bz, shared);
            return CUDA_SUCCESS;
        }
    }
    auto values = std::make_shared<std::vector<std::vector<char>>>();
    for (int i = 0; i < f->nargs; i++) values->emplace_back((char*)params[i], (char*)params[i] + f->sizes[i]);
    return (CUresult)perform(stream_of(stream), f->name, [=] {
        std::vector<void*> pointers;
        for (auto& value : *values) pointers.push_back(value.data());
        f->launch(pointers.data(), gx, gy, gz, bx, by, bz, shared);
    });
}

CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction handle) {
    auto* f = (Function*)handle;
    switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; break;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: *value = f->most_dynamic_shared; break;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: *value = f->static_shared; break;
    default: *value = 0;
    }
    return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction handle, CUfunction_attribute attribute, int value) {
    if (attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) {
        if (value < 0 || value > LARGEST_SHARED) return CUDA_ERROR_INVALID_VALUE;
        ((Function*)handle)->most_dynamic_shared = value;
    }
    return CUDA_SUCCESS;
}

// CuPy chooses block sizes by these two; the numbers are those of a kernel with few registers on an H100.
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks_each, CUfunction, int, size_t) {
    *blocks_each = 2;
    return CUDA_SUCCESS;
}

CUresult cuOccupancyMaxPotentialBlockSize(int* grid, int* block, CUfunction, CUoccupancyB2DSize, size_t, int) {
    *grid = 264;
    *block = 512;
    return CUDA_SUCCESS;
}

// What CuPy's driver module is linked with and the stand-in does not have.
CUresult cuModuleLoad(CUmodule*, const char*) { return CUDA_ERROR_NOT_SUPPORTED; }
CUresult cuLinkCreate_v2(unsigned, CUjit_option*, void**, CUlinkState*) { return CUDA_ERROR_NOT_SUPPORTED; }
CUresult cuLinkAddData_v2(CUlinkState, CUjitInputType, void*, size_t, const char*, unsigned, CUjit_option*, void**) {
    return CUDA_ERROR_NOT_SUPPORTED;
}
CUresult cuLinkAddFile_v2(CUlinkState, CUjitInputType, const char*, unsigned, CUjit_option*, void**) {
    return CUDA_ERROR_NOT_SUPPORTED;
}
CUresult cuLinkComplete(CUlinkState, void**, size_t*) { return CUDA_ERROR_NOT_SUPPORTED; }
CUresult cuLinkDestroy(CUlinkState) { return CUDA_SUCCESS; }
CUresult cuLaunchCooperativeKernel(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                                   CUstream, void**) {
    fakegpu_missing("cuLaunchCooperativeKernel");
    return CUDA_ERROR_NOT_SUPPORTED;
}
}
