"""CuPy's own wheel on a machine without a GPU: see tests/fakegpu/README.md.

hook        what happens when CuPy is imported
device      the libraries in CUDA's place: counting, tracing
compiler    CUDA text into a shared object, by g++
host_work   what NumPy does in the place of Thrust and of cub's device-wide functions
nvrtc       what NVIDIA's compiler says of CUDA text
"""
