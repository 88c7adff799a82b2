"""Small errors in the CUDA text of scratchvit/kernels/cuda, which the tests on tests/fakegpu have to catch.

A missing barrier, a wrong bound, an exchanged index, a lost term: what a kernel can be wrong in without a word. Those
of kernels for many arrays at once are in update_mutants.py, of functions of single entries in map_mutants.py, of
attention by tensor cores in flash_mutants.py; those that concern arrays of 16 bits in half_mutants.py.
"""

from mutants import kernel_mutant as _mutant

KERNEL_MUTANTS = [
    # --- addresses.py
    _mutant(
        "addresses: one matrix too many", "a wrong bound", "addresses", "if (i >= count) return;",
        "if (i > count) return;", "blas",
    ),
    _mutant(
        "addresses: the outer and the inner axis", "an exchanged index", "addresses",
        "i / inner * stack.outer_step + i % inner * stack.inner_step",
        "i % inner * stack.outer_step + i / inner * stack.inner_step", "blas",
    ),
    _mutant(
        "addresses: the same matrix along the inner axis", "a lost term", "addresses",
        " + i % inner * stack.inner_step;", ";", "blas",
    ),
    # --- blas_plan.py, blas.py, blas_lt.py
    _mutant(
        "products: x, where y should be transposed", "an exchanged index", "blas_plan",
        "(transposed_a, transposed_b, m, n, k),", "(transposed_b, transposed_a, m, n, k),", "blas",
    ),
    _mutant(
        "products: axes of a stack are one, whatever their strides", "a lost term", "blas_plan",
        "if fewer and all(outer == length * step", "if fewer and any(outer == length * step", "blas",
    ),
    _mutant(
        "products: rows that do not follow each other", "a lost term", "blas_plan",
        "by == m.rows * m.row for", "by >= m.row for", "blas",
    ),
    _mutant(
        "products: rows that overlap", "a wrong bound", "blas_plan",
        "(m.rows == 1 or m.row >= m.columns)", "(m.rows == 1 or m.row >= 0)", "blas",
    ),
    _mutant(
        "products: parts of a stack begin at its first matrix", "a lost term", "blas",
        "place + number * step * item for", "place for", "blas",
    ),
    _mutant(
        "products: addresses of other arrays", "a lost term", "addresses",
        "return lengths == self.lengths and all(", "return bool(self.rows) and all(", "blas",
    ),
    _mutant(
        "products: in TF32, the gradient of a bias too", "a lost term", "blas_lt",
        'return x.dtype.char == "f" and matmul_precision() == "tf32"', "return False",
    ),
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
    _mutant(
        "layer_norm: of x instead of the sum", "a lost term", "layer_norm", "        x = z;\n", "",
    ),
    _mutant(
        "layer_norm: dropout by the column, not by the entry", "an exchanged index", "layer_norm",
        "(factor != 0 ? keep(draw, row * D + i) : 1)", "(factor != 0 ? keep(draw, i) : 1)",
    ),
    _mutant(
        "layer_norm: the gradient of what was added without dropout", "a lost term", "layer_norm",
        "gradient * keep(draw, row * D + i)", "gradient",
    ),
    _mutant(
        "layer_norm: no gradient of what was added unless x has one", "a wrong bound", "layer_norm",
        "if (!dx && !dadded) continue;", "if (!dx) continue;",
    ),
    # --- add_up.py
    _mutant("add_up: an entry too many", "a wrong bound", "add_up", "if (i >= N) return;", "if (i > N) return;"),
    _mutant("add_up: without the last array", "a lost term", "add_up", "j < count", "j < count - 1"),
    _mutant("add_up: the first array twice", "an exchanged index", "add_up", "x.of[j][i]", "x.of[j - 1][i]"),
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
    # --- cross_entropy.py
    _mutant(
        "cross_entropy: the row after the last", "a wrong bound", "cross_entropy",
        "if (row >= N) return;\n    x += row / S * at.image + row % S * at.place;\n    A largest",
        "if (row > N) return;\n    x += row / S * at.image + row % S * at.place;\n    A largest",
    ),
    _mutant(
        "cross_entropy: largest logits not subtracted", "a lost term", "cross_entropy",
        "largest = warp_max(largest);", "largest = 0;",
    ),
    _mutant(
        "cross_entropy: a label that is one too large", "a wrong bound", "cross_entropy",
        "label >= C", "label > C",
    ),
    _mutant(
        "cross_entropy: the weight of the class not in the divisor", "a lost term", "cross_entropy",
        "if (weight) count *= weight[label];\n        a = count * (A)(1 - smoothing);",
        "a = count * (weight ? (A)weight[label] : 1) * (A)(1 - smoothing);",
    ),
    _mutant(
        "cross_entropy: images and places exchanged", "an exchanged index", "cross_entropy",
        "this->q += row / S * C * S + row % S;", "this->q += row % S * C * S + row / S;",
    ),
    _mutant(
        "cross_entropy: dx without w q", "a lost term", "cross_entropy",
        "(p * of_targets - target.weighted_q(c))", "(p * of_targets)",
    ),
    _mutant(
        "cross_entropy: losses added before all are there", "a missing barrier", "cross_entropy",
        "        __syncthreads();\n        if (i < half)", "        if (i < half)",
    ),
    # --- set_losses.py
    _mutant(
        "box losses: the layer's last query", "a wrong bound", "set_losses",
        "query < (layer + 1) * Q; query += 256", "query < (layer + 1) * Q - 1; query += 256",
    ),
    _mutant(
        "box losses: a query without an object has the first", "a wrong bound", "set_losses",
        "if (which[query] >= 0) {", "if (which[query] >= -1) {",
    ),
    _mutant(
        "box losses: sums added before all are there", "a missing barrier", "set_losses",
        "        __syncthreads();\n        if (i < half)\n            for (int k = 0; k < 2; k++) sums",
        "        if (i < half)\n            for (int k = 0; k < 2; k++) sums",
    ),
    _mutant(
        "box losses: the gradients of L1 and GIoU exchanged", "an exchanged index", "set_losses",
        "dl1 = dy[query / Q], dgiou = -(A)dy[L + query / Q]", "dl1 = dy[L + query / Q], dgiou = -(A)dy[query / Q]",
    ),
    _mutant(
        "GIoU: the derivative by the box around", "a lost term", "set_losses",
        "A dC = (C - U) * one_by_C * one_by_C - one_by_C;", "A dC = -one_by_C;",
    ),
    _mutant(
        "GIoU: all of the gradient where ends are equal", "a lost term", "set_losses",
        "x == y ? (A)0.5 : 0", "x == y ? (A)1 : 0",
    ),
    _mutant(
        "costs: queries of the first image", "a lost term", "set_losses",
        "(layer * images + image[t]) * N + n", "(layer * images) * N + n",
    ),
    _mutant(
        "costs: the last pair", "a wrong bound", "set_losses",
        "if (i >= L * of_all * N) return;", "if (i >= L * of_all * N - 1) return;",
    ),
    _mutant(
        "errors: no object counts as one", "a lost term", "set_losses", "if (c != none && (none", "if ((none",
    ),
    _mutant(
        "errors: of equal logits the last counts", "an exchanged index", "set_losses",
        "logit == of_label && c < label", "logit == of_label && c > label",
    ),
    _mutant(
        "errors: added before all warps are there", "a missing barrier", "set_losses",
        "found[warp][1] = wrong;\n    __syncthreads();", "found[warp][1] = wrong;",
    ),
    # --- windows.py and columns.py
    _mutant(
        "windows: an entry before the first is inside", "a wrong bound", "windows",
        "i < 0 || j < 0 || k < 0 ? -1 : ((size)i * input", "i < 0 || j < 0 ? -1 : ((size)i * input", "columns",
    ),
    _mutant(
        "windows: dilation left out on the way back", "a lost term", "windows", "- tap * dilation[axis];", "- tap;",
        "columns",
    ),
    _mutant(
        "windows: a place after the last", "a wrong bound", "windows", "< output[axis] ?", "<= output[axis] ?",
        "columns",
    ),
    _mutant("im2col: a column after the last", "a wrong bound", "columns", "if (column >= N) return;", ""),
    _mutant(
        "im2col: height and width exchanged", "an exchanged index", "windows",
        "((size)i * input[1] + j) * input[2] + k", "((size)i * input[2] + k) * input[1] + j", "columns",
    ),
    _mutant(
        "im2col: only the first channels", "a wrong bound", "columns",
        "c < C; c += gridDim.y) {\n        const T* plane", "c < gridDim.y; c += gridDim.y) {\n        const T* plane",
    ),
    _mutant(
        "col2im: the second part of an image replaces the first", "a lost term", "columns",
        "A sum = add ? (A)*to : 0;", "A sum = 0;",
    ),
    _mutant("col2im: a column of another image", "an exchanged index", "columns", "* N + image * P;", "* N;"),
    _mutant("col2im: not the first place", "a wrong bound", "columns", "place >= first &&", "place > first &&"),
    # --- warps.py and batch_norm.py
    _mutant(
        "block_sum: sums read before all warps have written", "a missing barrier", "warps",
        "    __syncthreads();\n    double sum = 0;", "    double sum = 0;", "batch_norm",
    ),
    _mutant(
        "block_sum: the next sum written before all have read", "a missing barrier", "warps",
        "    __syncthreads(); // until all have read, before the next sums are written\n", "", "batch_norm",
    ),
    _mutant(
        "batch_norm: a number too many in each part", "a wrong bound", "batch_norm",
        "i < part.last; i += blockDim.x) sum += (A)x", "i <= part.last; i += blockDim.x) sum += (A)x",
    ),
    _mutant(
        "batch_norm: how far the parts' means are apart", "a lost term", "batch_norm",
        "parts[(P + p) * C + c] + (Part::begin(p + 1, n) - Part::begin(p, n)) * apart * apart;",
        "parts[(P + p) * C + c];",
    ),
    _mutant(
        "batch_norm: image and channel exchanged", "an exchanged index", "batch_norm",
        "return (i / S * C + c) * S + i % S;", "return (c * C + i / S) * S + i % S;",
    ),
    _mutant("batch_norm: a biased running variance", "a lost term", "batch_norm", "variance * n / (n - 1)", "variance"),
    _mutant(
        "batch_norm: the sums of the first part only", "a lost term", "batch_norm",
        "p < P; p += 32) {\n            sum +=", "p < 1; p += 32) {\n            sum +=",
    ),
    _mutant(
        "batch_norm: dx without x̂ mean(g x̂)", "a lost term", "batch_norm",
        "average + ((A)x[part.at(i)] - mu) * slope", "average",
    ),
    # --- pooling.py
    _mutant(
        "max_pool: the last of equal entries wins", "a wrong bound", "pooling",
        "(value > largest) last", "(value >= largest) last",
    ),
    _mutant(
        "max_pool: NaN is passed over", "a lost term", "pooling",
        "value > largest || isnan(value)", "value > largest",
    ),
    _mutant(
        "max_pool: an entry after the last", "a wrong bound", "pooling",
        "if (i >= planes * S) return;\n    Index entry(i % S, windows.input);\n    winner",
        "if (i > planes * S) return;\n    Index entry(i % S, windows.input);\n    winner",
    ),
    _mutant(
        "max_pool: windows of the first plane", "an exchanged index", "pooling",
        "    winner += i / S * windows.places();\n", "",
    ),
    _mutant(
        "avg_pool: padding counted beyond the end", "a wrong bound", "pooling",
        "min(end, windows.input[axis] + padding)", "end",
    ),
    _mutant(
        "avg_pool: height and width exchanged", "an exchanged index", "pooling",
        "min(end, windows.input[axis] + padding)", "min(end, windows.input[2] + padding)",
    ),
    # --- warps.py
    _mutant(
        "warps: a sum over 16 of 32 lanes", "a wrong bound", "warps",
        "apart > 0; apart /= 2) value += ", "apart > 1; apart /= 2) value += ", "softmax",
    ),
    _mutant(
        "warps: the largest of 16 of 32 lanes", "a wrong bound", "warps",
        "int apart = 16; apart > 0; apart /= 2) value = fmax", "int apart = 8; apart > 0; apart /= 2) value = fmax",
        "softmax",
    ),
    _mutant(
        "warps: sums of warps read before they are written", "a missing barrier", "warps",
        "    __syncthreads();\n    double sum = 0;", "    double sum = 0;", "softmax",
    ),
    _mutant(
        "warps: maxima of warps read before they are written", "a missing barrier", "warps",
        "    __syncthreads();\n    for (int warp", "    for (int warp", "softmax",
    ),
    _mutant(
        "warps: the sum without the first warp", "a lost term", "warps",
        "    double sum = 0;\n    for (int warp = 0;", "    double sum = 0;\n    for (int warp = 1;", "softmax",
    ),
    # --- softmax.py
    _mutant(
        "softmax: the row after the last", "a wrong bound", "softmax",
        "if (row >= R) return;\n    x +=", "if (row > R) return;\n    x +=",
    ),
    _mutant("softmax: the largest number is not subtracted", "a lost term", "softmax", "exp(x[j] - m)", "exp(x[j])"),
    _mutant(
        "softmax: columns beyond the row are read", "a wrong bound", "softmax",
        "own_column(j) < M ? (A)x[own_column(j)] : -INFINITY", "(A)x[own_column(j)]",
    ),
    _mutant("softmax: dx without Σ p dy", "a lost term", "softmax", "p[j] * (given[j] - sum)", "p[j] * given[j]"),
    _mutant(
        "softmax: dx of the logarithm with Σ p dy", "a wrong term", "softmax",
        "logarithm ? given[j] : p[j] * given[j];", "p[j] * given[j];",
    ),
    # --- attention.py
    _mutant(
        "attention: a bias of the image instead of the head", "an exchanged index", "attention",
        "bias[b * bias_b + h * bias_h", "bias[h * bias_b + b * bias_h",
    ),
    _mutant(
        "attention: a mask for the query of another head", "an exchanged index", "attention",
        "h = row / N % H, n = row % N", "h = row / N % H, n = row / H % N",
    ),
    _mutant(
        "attention: a bias times the scale", "a wrong factor", "attention",
        "p[j] += (A)bias", "p[j] += (A)scale * (A)bias",
    ),
    _mutant("attention: no mask", "a lost term", "attention", "m >= M || (mask &&", "m >= M || (false && mask &&"),
    _mutant(
        "attention: rows without a key are NaN", "a lost case", "attention", "sum == 0 ? 0 : 1 / sum", "1 / sum",
    ),
    _mutant("attention: the largest finite number is 0", "a wrong bound", "attention", "p, LOWEST, &sum", "p, 0, &sum"),
    _mutant(
        "attention: dropout by the column alone", "an exchanged index", "attention",
        "keep(draw, row * M + m)", "keep(draw, m)",
    ),
    _mutant(
        "attention: another mask in backward", "an exchanged index", "attention", "keep(draw, i)", "keep(draw, i + 1)",
    ),
    _mutant("attention: dS without Σ P dP", "a lost term", "attention", "p[j] * (dp[j] - sum)", "p[j] * dp[j]"),
    _mutant(
        "attention: dP of what was dropped", "a lost term", "attention", "            dp[j] *= kept;\n", "",
    ),
    # --- draws.py, dropout.py
    _mutant("draws: keys on the device are not read", "a lost case", "draws", "if (keys) {", "if (false) {", "dropout"),
    _mutant("draws: the first key alone", "a lost term", "draws", " + second_key", "", "dropout"),
    _mutant("draws: parts begin at 0", "a lost term", "draws", "place = draw.first + ", "place = ", "parts_of_draws"),
    _mutant("draws: the same beyond 2³²", "a lost case", "draws", "? BEYOND : 0", "? 0 : 0", "parts_of_draws"),
    _mutant("draws: half of a position", "a lost term", "draws", " | (size)keys[3] << 32", "", "parts_of_draws"),
    _mutant("dropout: the number after the last", "a wrong bound", "dropout", "i >= count", "i > count"),
    _mutant("drop_path: entries dropped instead of samples", "an exchanged index", "dropout", "i / together", "i"),
    # --- index_sums.py
    _mutant(
        "sums by an index: negative numbers are not found", "a lost case", "index_sums",
        "found == row || found == row - rows", "found == row",
    ),
    _mutant(
        "sums by an index: one position of 32", "a lost term", "index_sums",
        "for (; lanes; lanes &= lanes - 1)", "for (; lanes; lanes = 0)",
    ),
    _mutant("sums by an index: read past its end", "a wrong bound", "index_sums", "if (i < N) found", "found"),
    _mutant(
        "sums by an index: rows and columns of the values exchanged", "an exchanged index", "index_sums",
        "values[order[i] * next_row + column * next_column]", "values[order[i] * next_column + column * next_row]",
    ),
    _mutant(
        "sums by a sorted index: without the order", "an exchanged index", "index_sums",
        "values[order[i] *", "values[i *",
    ),
    _mutant(
        "sums by a sorted index: the last of a number is left out", "a wrong bound", "index_sums",
        "bisect(sorted, N, number + 1);", "bisect(sorted, N, number + 1) - 1;",
    ),
    # --- depthwise.py
    _mutant(
        "depth-wise: an entry after the last", "a wrong bound", "depthwise", "if (i >= B * P * O) return;",
        "if (i > B * P * O) return;",
    ),
    _mutant(
        "depth-wise: the filters of the channels exchanged", "an exchanged index", "depthwise",
        "size first = i % C * m,", "size first = i % C,",
    ),
    _mutant(
        "depth-wise: the first image for all", "an exchanged index", "depthwise",
        "dy += image * windows.places() * O;", "",
    ),
    _mutant(
        "depth-wise: a place too many in each part", "a wrong bound", "depthwise",
        "row < N * (part + 1) / count;", "row <= N * (part + 1) / count;",
    ),
    _mutant("depth-wise: the bias", "a lost term", "depthwise", "bias ? (A)bias[o] : 0", "0"),
    # --- group_norm.py
    _mutant("group_norm: a number too many", "a wrong bound", "group_norm", "k < 64 && i < n;", "k < 64 && i <= n;"),
    _mutant(
        "group_norm: the weights of the first group for all", "an exchanged index", "group_norm",
        "channel = row % (C / c) * c;", "channel = 0;",
    ),
    _mutant(
        "group_norm: squares of x, not of x - mean", "a lost term", "group_norm",
        "((A)x[i] - mu) * ((A)x[i] - mu); }) / n", "(A)x[i] * (A)x[i]; }) / n",
    ),
    _mutant(
        "group_norm: the sums of another group", "an exchanged index", "group_norm",
        "sums[row * c + i]", "sums[row + i]",
    ),
    _mutant("group_norm: dx without mean(g)", "a lost term", "group_norm", "* w - mean_g - (", "* w - ("),
]
