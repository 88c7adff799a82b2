"""Small errors in the CUDA text of functions of single entries, and of GELU with its bias: see kernel_mutants.py."""

from mutants import Mutant
from mutants import kernel_mutant as _mutant

MAP_MUTANTS = [
    # --- maps.py
    _mutant("gelu: the derivative is that of Φ", "a lost term", "maps", "{x * cdf, cdf + x *", "{x * cdf, x *"),
    _mutant(
        "gelu: the entry after the last", "a wrong bound", "maps",
        "if (i >= N) return;\n    Gelu gelu =", "if (i > N) return;\n    Gelu gelu =",
    ),
    _mutant("gelu, tanh: c x², not 3 c x²", "a lost term", "maps", "(1 + 3 * c * square)", "(1 + c * square)"),
    _mutant("logistic: e^-x overflows", "a lost term", "maps", "exp(-fabs(value))", "exp(-value)"),
    _mutant("relu: a gradient at 0", "a wrong bound", "maps", "y[i] > 0 ?", "y[i] >= 0 ?"),
    # --- bias_gelu.py
    _mutant(
        "bias_gelu: the derivative without the bias", "a lost term", "bias_gelu",
        "(A)dy[i] * gelu_of((A)x[i] + added).slope", "(A)dy[i] * gelu_of((A)x[i]).slope",
    ),
    _mutant(
        "bias_gelu: the column after the last", "a wrong bound", "bias_gelu", "if (column >= D) return;",
        "if (column > D) return;",
    ),
    _mutant(
        "bias_gelu: parts end one row too early", "a wrong bound", "bias_gelu",
        "return N * (blockIdx.x + 1) / gridDim.x;", "return N * (blockIdx.x + 1) / gridDim.x - 1;",
    ),
    _mutant(
        "bias_gelu: parts and columns of the sums exchanged", "an exchanged index", "bias_gelu",
        "parts[blockIdx.x * D + column]", "parts[column * gridDim.x + blockIdx.x]",
    ),
    Mutant(
        "CUDA: bias_gelu: in TF32, sums during the product", "a lost term", "kernels/cuda/blas_lt.py",
        """    if _rounds_sums(x):
        return False
""", "", ("kernels/cuda/test_bias_gelu.py",), on_gpu=True,
    ),
]
