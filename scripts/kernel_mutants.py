"""Small errors in the CUDA text of scratchvit/kernels/cuda, which the tests on tests/fakegpu have to catch.

A missing barrier, a wrong bound, an exchanged index, a lost term: what a kernel can be wrong in without a word.
"""

from mutants import Mutant


def _mutant(name: str, kind: str, file: str, text: str, instead: str, test: str = "") -> Mutant:
    """In kernels/cuda/`file`.py, for the tests of that file, or of another one."""
    tests = (f"kernels/cuda/test_{test or file}.py",)
    return Mutant(f"CUDA: {name}", kind, f"kernels/cuda/{file}.py", text, instead, tests, on_gpu=True)


KERNEL_MUTANTS = [
    # --- layer_norm.py
    _mutant(
        "layer_norm: the row after the last", "a wrong bound", "layer_norm", "if (row >= N) return;",
        "if (row > N) return;",
    ),
    _mutant(
        "layer_norm: variance of x, not of x - mean", "a lost term", "layer_norm",
        "A centred = (A)x[i] - mu;", "A centred = (A)x[i];",
    ),
    _mutant(
        "layer_norm: dx without x̂ mean(g x̂)", "a lost term", "layer_norm",
        "scale * (g - mean_g - x_hat * mean_g_x_hat)", "scale * (g - mean_g)",
    ),
    _mutant(
        "layer_norm: sums read before all warps have added", "a missing barrier", "layer_norm",
        "    __syncthreads();\n    for (size i = threadIdx.x; i < 2 * D", "    for (size i = threadIdx.x; i < 2 * D",
    ),
    _mutant(
        "layer_norm: sums not begun at 0", "a lost term", "layer_norm",
        "own_weight[i] = own_bias[i] = 0;", "own_weight[i] = 0;",
    ),
    _mutant(
        "layer_norm: sums of half of the columns begun at 0 by another lane", "a missing barrier", "layer_norm",
        "i < D; i += 32) own_weight[i] = own_bias[i] = 0;", "i < 2 * D; i += 32) own_weight[i] = 0;",
    ),
    _mutant(
        "layer_norm: dweight and dbias exchanged", "an exchanged index", "layer_norm",
        "size of_bias = i >= D;", "size of_bias = i < D;",
    ),
    # --- column_sums.py
    _mutant(
        "column sums: a row too many in each part", "a wrong bound", "column_sums",
        "row < last; row += 8", "row <= last; row += 8",
    ),
    _mutant(
        "column sums: lines read before they are written", "a missing barrier", "column_sums",
        "    __syncthreads();\n    S sum = 0;", "    S sum = 0;",
    ),
    _mutant(
        "column sums: seven of eight lines", "a wrong bound", "column_sums", "line < 8; line++", "line < 7; line++",
    ),
    _mutant(
        "column sums: the second matrix of parts is the first", "an exchanged index", "column_sums",
        "parts += blockIdx.y * P * D;", "", "layer_norm",
    ),
]
