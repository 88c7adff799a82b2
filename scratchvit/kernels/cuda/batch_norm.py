"""Batch norm: two launches forward, with the running statistics, and two backward. Frozen, one each.

    plain       y = x̂ weight + bias,  x̂ = (x - μ) r over all images and places of a channel; with g = dy weight
                dx = r (g - mean(g) - x̂ mean(g x̂)),  dweight = Σ dy x̂,  dbias = Σ dy
    problem     24 operations forward and 18 backward, each of which reads and writes whole arrays
    idea        the numbers of a channel are divided into parts. A first kernel gives mean and squared deviations of
                each part, its own mean subtracted; the second one combines them to those of the channel (Chan, Golub &
                LeVeque, 1979) before it uses them, each warp for itself, which is cheaper than a launch
    who

        x (B, C, S)      channel c: n = B·S numbers in B pieces of S
                         image 0        image 1        image 2        …
                         ├── part 0 ──────────┼─── part 1 ──────────┼──
                         block (c, 0)          block (c, 1)            thread t of a block has the numbers
                                                                       t, t + 256, … of its part

Deviations from the mean are squared, and not numbers of which the mean's square is subtracted later: that would lose
all digits of a channel far from 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scratchvit.backend import Array, array_module
from scratchvit.kernels import cuda
from scratchvit.kernels.cuda.modules import computed_in, divide, launch

THREADS = 256                   # of a block
LONGEST = 64                    # numbers that a thread adds

TEXT = r"""
// --- batch_norm.py ---

// The part blockIdx.y of channel blockIdx.x of arrays (B, C, S).
struct Part {
    unsigned S, first, last;
    size c, C;

    __device__ Part(size B, size C, size S) : S(S), c(blockIdx.x), C(C) {
        first = begin(blockIdx.y, B * S);
        last = begin(blockIdx.y + 1, B * S);
    }
    __device__ static size begin(size part, size n) { return n * part / gridDim.y; }
    __device__ size at(unsigned i) const { return (i / S * C + c) * S + i % S; }
};

// Mean and squared deviations of each part: parts (2, P, C).
extern "C" __global__ void channel_moments(const T* x, double* parts, size B, size C, size S) {
    Part part(B, C, S);
    A sum = 0, squares = 0;
    for (unsigned i = part.first + threadIdx.x; i < part.last; i += blockDim.x) sum += (A)x[part.at(i)];
    A mean = block_sum(sum) / (part.last - part.first);
    for (unsigned i = part.first + threadIdx.x; i < part.last; i += blockDim.x) {
        A centred = (A)x[part.at(i)] - mean;
        squares += centred * centred;
    }
    squares = block_sum(squares);
    if (threadIdx.x > 0) return;
    parts[blockIdx.y * C + part.c] = mean;
    parts[(gridDim.y + blockIdx.y) * C + part.c] = squares;
}

// Mean and variance of a channel of n numbers from those of its parts; every lane gets them.
__device__ void combine(const double* parts, size C, size n, double* mean, double* variance) {
    size c = blockIdx.x, P = gridDim.y;
    double sum = 0, squares = 0;
    for (size p = threadIdx.x % 32; p < P; p += 32)
        sum += (Part::begin(p + 1, n) - Part::begin(p, n)) * parts[p * C + c];
    *mean = warp_sum(sum) / n;
    for (size p = threadIdx.x % 32; p < P; p += 32) {
        double apart = parts[p * C + c] - *mean;
        squares += parts[(P + p) * C + c] + (Part::begin(p + 1, n) - Part::begin(p, n)) * apart * apart;
    }
    *variance = warp_sum(squares) / n;
}

// y, and mean and r (C,) of what x was normalised by: by the moments of the parts, or if parts is null, by the running
// statistics. With parts, these are updated unless they are null: by the share `momentum`, or *given_momentum.
extern "C" __global__ void batch_norm(const T* x, const double* parts, A* running_mean, A* running_var,
                                      const A* given_momentum, double momentum, const A* weight, const A* bias, T* y,
                                      A* used_mean, A* used_r, size B, size C, size S, double eps) {
    Part part(B, C, S);
    size c = part.c, n = B * S;
    double mean, variance;
    if (parts) {
        combine(parts, C, n, &mean, &variance);
    } else {
        mean = running_mean[c];
        variance = running_var[c];
    }
    A mu = mean, r = 1 / sqrt((A)variance + (A)eps);
    if (isinf((A)variance)) r = NAN; // of numbers around 1e20, where 1/sqrt(inf) would give 0
    A scale = weight ? r * weight[c] : r, shift = bias ? bias[c] : 0;
    for (unsigned i = part.first + threadIdx.x; i < part.last; i += blockDim.x)
        y[part.at(i)] = ((A)x[part.at(i)] - mu) * scale + shift;
    if (threadIdx.x > 0 || blockIdx.y > 0) return;
    used_mean[c] = mu;
    used_r[c] = r;
    if (!parts || !running_mean) return;
    A share = given_momentum ? *given_momentum : (A)momentum;
    running_mean[c] = running_mean[c] * (1 - share) + share * mu;
    running_var[c] = running_var[c] * (1 - share) + share * (A)(variance * n / (n - 1)); // unbiased
}

// The sums of dy and of dy x_hat over each part: parts (2, P, C).
extern "C" __global__ void channel_gradients(const T* x, const T* dy, const A* mean, const A* r, double* parts, size B,
                                             size C, size S) {
    Part part(B, C, S);
    A mu = mean[part.c], sum = 0, along_x_hat = 0;
    for (unsigned i = part.first + threadIdx.x; i < part.last; i += blockDim.x) {
        A given = (A)dy[part.at(i)];
        sum += given;
        along_x_hat += given * ((A)x[part.at(i)] - mu);
    }
    sum = block_sum(sum);
    along_x_hat = block_sum(along_x_hat) * r[part.c];
    if (threadIdx.x > 0) return;
    parts[blockIdx.y * C + part.c] = sum;
    parts[(gridDim.y + blockIdx.y) * C + part.c] = along_x_hat;
}

// dx, dweight and dbias, or null. The sums are over P parts. x is null if mean and r are constants: dx = dy r weight.
extern "C" __global__ void batch_norm_backward(const T* x, const T* dy, const A* mean, const A* r, const A* weight,
                                               const double* parts, T* dx, A* dweight, A* dbias, size B, size C,
                                               size S, size P) {
    Part part(B, C, S);
    size c = part.c, n = B * S;
    double sum = 0, along_x_hat = 0;
    if (parts) {
        for (size p = threadIdx.x % 32; p < P; p += 32) {
            sum += parts[p * C + c];
            along_x_hat += parts[(P + p) * C + c];
        }
        sum = warp_sum(sum);
        along_x_hat = warp_sum(along_x_hat);
        if (threadIdx.x == 0 && blockIdx.y == 0) {
            if (dweight) dweight[c] = along_x_hat;
            if (dbias) dbias[c] = sum;
        }
    }
    if (!dx) return;
    A mu = x ? mean[c] : 0, scale = weight ? r[c] * weight[c] : r[c];
    A average = sum / n, slope = r[c] * (A)(along_x_hat / n);
    for (unsigned i = part.first + threadIdx.x; i < part.last; i += blockDim.x) {
        A g = (A)dy[part.at(i)];
        if (x) g -= average + ((A)x[part.at(i)] - mu) * slope;
        dx[part.at(i)] = scale * g;
    }
}
"""


def takes(planes: Array, *per_channel: Any) -> bool:
    """Whether these kernels compute on planes (B, C, S) with such arrays (C,) or (), which may be numbers or None.

    For planes of 16 bits, the arrays are of float32, and so will be the gradients of weight and bias.
    """
    given = [array for array in per_channel if hasattr(array, "dtype")]
    return (
        cuda.takes(planes) and planes.size > 0 and planes.size // planes.shape[1] < 1 << 31
        and all(type(a) is type(planes) and a.dtype == computed_in(planes) and a.flags.c_contiguous for a in given)
    )


def normalise_channels(
    planes: Array, running: tuple[Any, Any, Any], training: bool, weight: Array | None, bias: Array | None, eps: float,
) -> tuple[Array, Callable[[Array, Any], tuple[Array | None, ...]]]:
    """Value and backward of batch norm of planes (B, C, S): see kernels/batch_norm.py."""
    xp = array_module(planes)
    planes = xp.ascontiguousarray(planes)
    B, C, S = planes.shape
    parts = None
    if training:
        parts = _parts(planes)
        launch("channels", "channel_moments", planes, _grid(planes), (THREADS,), planes, parts, B, C, S)
    y, mean, r = _normalised(planes, parts, running, weight, bias, eps)

    def backward(dy: Array, need: Any) -> tuple[Array | None, ...]:
        dy = xp.ascontiguousarray(dy)
        parts = None
        if training or need[1] or need[2]:
            parts = _parts(dy)
            launch("channels", "channel_gradients", dy, _grid(dy), (THREADS,), planes, dy, mean, r, parts, B, C, S)
        dweight, dbias = (xp.empty(C, dtype=computed_in(dy)) if wanted else None for wanted in need[1:3])
        dx = _gradients(planes if training else None, dy, mean, r, weight, parts, need[0], dweight, dbias)
        return dx, dweight, dbias

    return y, backward


def normalise_frozen(
    planes: Array, running_mean: Array, running_var: Array, weight: Array, bias: Array, eps: float
) -> tuple[Array, Callable[[Array], Array | None]]:
    """Value of frozen batch norm of planes (B, C, S), and a function dy → dx, which does not keep planes."""
    contiguous = array_module(planes).ascontiguousarray
    y, mean, r = _normalised(contiguous(planes), None, (running_mean, running_var, 0.0), weight, bias, eps)
    return y, lambda dy: _gradients(None, contiguous(dy), mean, r, weight, None, True, None, None)


def _normalised(
    planes: Array, parts: Array | None, running: tuple[Any, Any, Any], weight: Array | None, bias: Array | None,
    eps: float,
) -> tuple[Array, Array, Array]:
    """y, and the mean and r (C,) that it was made with."""
    y = array_module(planes).empty(planes.shape, dtype=planes.dtype)
    mean, r = (array_module(planes).empty(planes.shape[1], dtype=computed_in(planes)) for _ in range(2))
    *statistics, momentum = running
    momenta = (momentum, 0.0) if hasattr(momentum, "dtype") else (None, float(momentum))
    launch(
        "channels", "batch_norm", planes, _grid(planes), (THREADS,), planes, parts, *statistics, *momenta, weight, bias,
        y, mean, r, *planes.shape, float(eps),
    )
    return y, mean, r


def _gradients(
    planes: Array | None, dy: Array, mean: Array, r: Array, weight: Array | None, parts: Array | None, wanted: bool,
    dweight: Array | None, dbias: Array | None,
) -> Array | None:
    """dx, if it is wanted. planes: None if mean and r are constants. parts: sums for dweight and dbias."""
    dx = array_module(dy).empty(dy.shape, dtype=dy.dtype) if wanted else None
    C, P = _grid(dy)
    launch(
        "channels", "batch_norm_backward", dy, (C, P if wanted else 1), (THREADS,), planes, dy, mean, r, weight, parts,
        dx, dweight, dbias, *dy.shape, P,
    )
    return dx


def _grid(planes: Array) -> tuple[int, int]:
    """The number of channels, and of the parts of a channel."""
    return planes.shape[1], divide(planes.size // planes.shape[1], THREADS * LONGEST)


def _parts(planes: Array) -> Array:
    """Two numbers for each part of each channel."""
    C, P = _grid(planes)
    return array_module(planes).empty((2, P, C), dtype=float)
