"""Small errors in what concerns arrays of 16 bits: sums and statistics of the wrong type, numbers that are not rounded.

For float and double, most of them change nothing.
"""

from mutants import Mutant, kernel_mutant


def _mutant(name: str, kind: str, file: str, text: str, instead: str) -> Mutant:
    return kernel_mutant(f"16 bits: {name}", kind, file, text, instead, "half_precision")


A_SUM, A_STORE = "a sum of the wrong type", "a store that is not rounded"

HALF_MUTANTS = [
    _mutant(
        "layer_norm: the sum of a row in 16 bits", A_SUM, "layer_norm", "i += 32) sum += (A)x[i];",
        "i += 32) sum = (A)(T)(sum + (A)x[i]);",
    ),
    _mutant(
        "layer_norm: x̂ in 16 bits", A_SUM, "layer_norm", "A value = ((A)x[i] - mu) * scale;",
        "A value = (A)(T)(((A)x[i] - mu) * scale);",
    ),
    _mutant(
        "layer_norm: gradients of weight and bias in 16 bits", A_SUM, "layer_norm",
        "own_weight[i] += given * x_hat;", "own_weight[i] = (A)(T)(own_weight[i] + given * x_hat);",
    ),
    _mutant(
        "column sums: of a thread in 16 bits", A_SUM, "column_sums", "sum += (A)x[row * D + column];",
        "sum = (A)(T)(sum + (A)x[row * D + column]);",
    ),
    _mutant(
        "softmax: exponentials in 16 bits", A_SUM, "softmax", "x[j] = exp(x[j] - m);", "x[j] = (A)(T)exp(x[j] - m);",
    ),
    _mutant("gelu: Φ in 16 bits", A_SUM, "maps", "A cdf = (A)0.5 * erfc(", "A cdf = (A)(T)0.5 * (A)(T)erfc("),
    _mutant(
        "batch_norm: means of parts in 16 bits", A_SUM, "batch_norm",
        "A mean = block_sum(sum) / (part.last", "A mean = (A)(T)block_sum(sum) / (part.last",
    ),
    _mutant(
        "group_norm: what is added at once in 16 bits", A_SUM, "group_norm", "some += f(i);",
        "some = (A)(T)(some + f(i));",
    ),
    _mutant(
        "cross_entropy: the logarithm of the sum in 16 bits", A_SUM, "cross_entropy",
        "A log_of_sum = log(warp_sum(sum));", "A log_of_sum = (A)(T)log(warp_sum(sum));",
    ),
    _mutant(
        "sums by an index in 16 bits", A_SUM, "index_sums", "sum += (A)values[(first",
        "sum = (A)(T)(A)sum + (A)values[(first",
    ),
    _mutant(
        "col2im: sums in 16 bits", A_SUM, "columns", "sum += (A)sent[place - first];",
        "sum = (A)(T)(sum + (A)sent[place - first]);",
    ),
    _mutant(
        "avg_pool: sums in 16 bits", A_SUM, "pooling", "if (entry >= 0) sum += (A)x[entry];",
        "if (entry >= 0) sum = (A)(T)(sum + (A)x[entry]);",
    ),
    _mutant(
        "depth-wise: products in 16 bits", A_SUM, "depthwise", "sum += (A)*weight * (A)x[entry * C];",
        "sum += (A)(T)((A)*weight * (A)x[entry * C]);",
    ),
    _mutant(
        "columns: the gradient of the filters in 16 bits", A_SUM, "columns",
        ", precise = array_module(x), computed_in(x)", ", precise = array_module(x), x.dtype",
    ),
    _mutant(
        "dropout: what is kept is rounded before it is scaled", A_SUM, "dropout",
        "(A)x[i] * keep(draw, i / together)", "(A)(T)((A)x[i] * 3) * (keep(draw, i / together) / 3)",
    ),
    _mutant(
        "im2col: padding is not 0", "a lost case", "columns", "entry < 0 ? (T)0 : plane[entry]",
        "entry < 0 ? (T)1 : plane[entry]",
    ),
    _mutant(
        "adam: the shadow of the parameter before the step", A_STORE, "updates",
        "        p[i] = shrink * p[i] - step_size * (first / (sqrt(second) + eps));\n        if (shadow)",
        "        A before = p[i];\n        p[i] = shrink * p[i] - step_size * (first / (sqrt(second) + eps));\n"
        "        if (shadow) shadow[i] = before;\n        if (false)",
    ),
    _mutant(
        "sgd: the shadow is not written", A_STORE, "updates", "p[i] -= lr * direction;\n        if (shadow)",
        "p[i] -= lr * direction;\n        if (false)",
    ),
    _mutant(
        "shadows of the first table for all", "an exchanged index", "array_lists",
        """: len(beside[part])] = beside[part]""", """: len(beside[part])] = beside[: len(beside[part])]""",
    ),
    _mutant(
        "rounding: the first entries of a block only", "a wrong bound", "updates",
        "i += blockDim.x) shadow[i] = x[i];", "i += 16 * blockDim.x) shadow[i] = x[i];",
    ),
]
