#!/usr/bin/env bash
# Builds the stand-in for a GPU in $FAKEGPU_CACHE (default: ${XDG_CACHE_HOME:-~/.cache}/scratchvit-fakegpu): a virtual
# environment with CuPy's wheel and what the tests need, and the libraries that CuPy loads in CUDA's place.
# tests/fakegpu/run calls it; it does nothing if all is up to date. PYTHON names the interpreter (default: python3).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
cache=${FAKEGPU_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/scratchvit-fakegpu}
cupy=14.2.0         # the rebuilt module and some names in python/fakegpu belong to this version
cuda=12.9           # of the wheels with CUDA's headers and NVRTC
python="$cache/venv/bin/python"
build="$cache/build"

fail() { echo "fakegpu: $*" >&2; exit 1; }
say() { printf 'fakegpu: %3d s  %s\n' "$SECONDS" "$*"; }

[ "$(uname -sm)" = "Linux x86_64" ] || fail "the stand-in for a GPU runs on x86-64 Linux only, not on $(uname -sm)"
for tool in g++ nm; do
    command -v "$tool" >/dev/null ||
        fail "the stand-in for a GPU needs $tool, which is not installed: apt-get install g++"
done

mkdir -p "$build" "$cache/lib" "$cache/modules"
exec 9>"$cache/lock"
flock 9             # another process may be building
stamp=$(cat "$here"/build.sh "$here"/src/* "$here"/kernel_headers/shim_state.h "$root/pyproject.toml" | sha1sum)
[ "$(cat "$cache/stamp" 2>/dev/null)" != "$stamp" ] || exit 0
SECONDS=0

# --- the wheels ---

install() {
    "$python" -m pip install --quiet --no-compile --disable-pip-version-check "$@" >>"$build/pip.log" 2>&1 ||
        fail "pip could not install ${*: -1} and others (is there an internet connection?): see $build/pip.log"
}

: >"$build/pip.log"
say "a virtual environment in $cache/venv"
[ -x "$python" ] || "${PYTHON:-python3}" -m venv "$cache/venv" || fail "${PYTHON:-python3} -m venv failed"
install "setuptools>=77" wheel "cython>=3.2,<3.3" "numpy>=2.1"      # what the metadata of CuPy's source asks for

# CuPy's own source of cupy_backends.cuda.api.runtime, translated to C++. The wheel's is linked with a static runtime.
translate_runtime() {
    CUPY_INSTALL_USE_STUB=1 "$python" -m pip download --quiet --disable-pip-version-check --no-deps --no-binary cupy \
        --no-build-isolation --dest "$build" "cupy==$cupy" >"$build/source.log" 2>&1 ||
        fail "pip could not download the source of CuPy $cupy (is there an internet connection?): see $build/source.log"
    tar -xzf "$build/cupy-$cupy.tar.gz" -C "$build" "cupy-$cupy/cupy_backends"
    cd "$build/cupy-$cupy"
    "$python" - >"$build/cython.log" 2>&1 <<'PYTHON' || fail "Cython failed: see $build/cython.log"
import Cython
from Cython.Build import cythonize
from setuptools import Extension

module = Extension("cupy_backends.cuda.api.runtime", ["cupy_backends/cuda/api/runtime.pyx"], language="c++")
constants = {
    "CUPY_USE_CUDA_PYTHON": False, "CUPY_CUFFT_STATIC": False, "CUPY_HIP_VERSION": 0, "CUPY_CUDA_VERSION": 12090,
    "CUPY_CYTHON_VERSION": Cython.__version__,
}
cythonize([module], language_level=3, compile_time_env=constants)
PYTHON
}

say "CuPy $cupy, CUDA $cuda's headers and NVRTC, and the tests' requirements"
translate_runtime &
translated=$!
mapfile -t requirements < <("$python" -c '
import sys, tomllib
project = tomllib.load(open(sys.argv[1], "rb"))["project"]
def extra(name):
    for needed in project["optional-dependencies"][name]:
        if needed.startswith("scratchvit["):        # pip would look for it in the index
            for other in needed.removeprefix("scratchvit[").rstrip("]").split(","):
                yield from extra(other)
        else:
            yield needed
print(*project["dependencies"], *extra("test"), sep="\n")' "$root/pyproject.toml")
install "${requirements[@]}" "nvidia-cuda-runtime-cu12==$cuda.*" "nvidia-cuda-nvcc-cu12==$cuda.*" \
    "nvidia-cuda-nvrtc-cu12==$cuda.*" "cupy-cuda12x==$cupy"
wait "$translated" || exit 1

# --- the libraries ---

say "the libraries"
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
suffix=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
flags=(-std=c++17 -O2 -fPIC -pthread)
headers=(-I"$build/include" -I"$site/nvidia/cuda_runtime/include" -I"$site/nvidia/cuda_nvcc/include")
mkdir -p "$build/include"
cat >"$build/include/cuda_profiler_api.h" <<'HEADER'
// CuPy includes it; it is not in the wheels.
#pragma once
#include <cuda_runtime_api.h>
extern "C" cudaError_t cudaProfilerStart(void);
extern "C" cudaError_t cudaProfilerStop(void);
HEADER

compile_runtime() {
    local source="$build/cupy-$cupy/cupy_backends" python_headers
    python_headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    g++ "${flags[@]}" -O1 -w "${headers[@]}" -I"$python_headers" -I"$source/.." -I"$source" -I"$source/cuda/api" \
        -c "$source/cuda/api/runtime.cpp" -o "$build/runtime_module.o"
}
compile_runtime &
compiled=$!
for source in "$here"/src/*.cpp; do
    object="$build/$(basename "$source" .cpp).o"
    g++ "${flags[@]}" -Wall -Wextra -Wno-missing-field-initializers "${headers[@]}" -c "$source" -o "$object"
done
wait "$compiled"
device=("$build"/{fibers,graphs,memory,modules,runtime,streams}.o)
blas=("$build"/{gemm,cublas,cublas_lt}.o)
nccl=("$build"/nccl.o)

# Functions that CuPy's modules are linked with and that the stand-in does not have: each answers "not supported", and
# prints its name. Arguments: the module, a pattern of names, the status, and the objects that have the other functions.
missing_functions() {
    local module=$1 pattern=$2 status=$3 undefined
    shift 3
    undefined=$({ nm -u "$module"; nm -uD "$module"; } 2>/dev/null | awk '{print $NF}' | sed 's/@.*//')
    echo '#include "interface.h"'
    comm -23 <(grep -E "$pattern" <<<"$undefined" | sort -u) \
        <(nm --defined-only "$@" | awk 'NF == 3 {print $NF}' | sort -u) |
        while read -r name; do
            echo "extern \"C\" int $name() { fakegpu_missing(\"$name\"); return $status; }"
        done
}
missing_functions "$build/runtime_module.o" '^cuda[A-Z]' 801 "${device[@]}" >"$build/missing_cuda.cpp"
missing_functions "$(echo "$site"/cupy_backends/cuda/libs/cublas.*.so)" '^cublas[A-Z]' 15 "${blas[@]}" \
    >"$build/missing_cublas.cpp"
missing_functions "$(echo "$site"/cupy_backends/cuda/libs/nccl.*.so)" '^nccl[A-Z]' 5 "${nccl[@]}" \
    >"$build/missing_nccl.cpp"

cd "$cache/lib"
library() { g++ "${flags[@]}" -I"$here/src" -L. -shared -Wl,-soname,"$1" -o "$@" -ldl; }
library libcuda.so.1 "${device[@]}" "$build/missing_cuda.cpp"
library libcublas.so.12 "${blas[@]}" "$build/missing_cublas.cpp" -l:libcuda.so.1
library libnccl.so.2 "${nccl[@]}" "$build/missing_nccl.cpp" -l:libcuda.so.1
library libcublasLt.so.12 -Wl,--no-as-needed -l:libcublas.so.12        # has no code of its own: CuPy loads it by name
g++ -shared -o "$cache/modules/runtime$suffix" "$build/runtime_module.o" -L. -l:libcuda.so.1
echo "$stamp" >"$cache/stamp"
say "done: tests/fakegpu/run COMMAND…"
