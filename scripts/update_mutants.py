"""Small errors in the CUDA text of the end of a step: updates of many arrays at once, the norm of all gradients, the
decision about the step."""

from mutants import kernel_mutant as _mutant

UPDATE_MUTANTS = [
    # --- array_lists.py
    _mutant(
        "array lists: an entry too many of a row", "a wrong bound", "array_lists",
        "min(first + 4096, rows.length[row])", "min(first + 4096, rows.length[row] + 1)", "updates",
    ),
    _mutant(
        "array lists: one entry less than a block has", "a wrong bound", "array_lists",
        "min(first + 4096, rows.length[row])", "min(first + 4095, rows.length[row])", "updates",
    ),
    _mutant(
        "array lists: a row's first block is of the row before", "a wrong bound", "array_lists",
        "rows.first_block[middle] <= (int)blockIdx.x", "rows.first_block[middle] < (int)blockIdx.x", "updates",
    ),
    _mutant(
        "array lists: blocks counted from the first of the table", "a lost term", "array_lists",
        "((int)blockIdx.x - rows.first_block[row])", "((int)blockIdx.x)", "total_norm",
    ),
    _mutant(
        "array lists: groups of the first 64 rows for all", "an exchanged index", "array_lists",
        """fields["group"][:n] = groups[part]""", """fields["group"][:n] = groups[:n]""", "updates",
    ),
    # --- updates.py
    _mutant("adam: every row has the numbers of group 0", "an exchanged index", "updates",
            "numbers += 6 * rows.group[piece.row];", ""),
    _mutant("adam: the decay is not added", "a lost term", "updates", "if (decay != 0) g += decay * p[i];", ""),
    _mutant("adam: gradients are not clipped", "a lost term", "updates",
            "A g = gradient[i] * scale;", "A g = gradient[i];"),
    _mutant("adam: moments exchanged", "an exchanged index", "updates",
            "*m = rows.at[2][piece.row], *v = rows.at[3][piece.row]",
            "*m = rows.at[3][piece.row], *v = rows.at[2][piece.row]"),
    _mutant("adam: eps inside the root", "a lost term", "updates", "(sqrt(second) + eps)", "sqrt(second + eps)"),
    _mutant("sgd: the velocity is not kept", "a lost term", "updates", "            b[i] = velocity;\n", ""),
    _mutant("sgd: Nesterov without the momentum", "a lost term", "updates",
            "direction + momentum * velocity", "direction + velocity"),
    _mutant("average: the weight for the average", "an exchanged index", "updates",
            "part * (x[i] - a[i])", "part * (a[i] - x[i])"),
    _mutant("copy: a thread beyond the first warp is left out", "a wrong bound", "updates",
            "i += blockDim.x) y[i] = x[i]", "i += 2 * blockDim.x) y[i] = x[i]"),
    # --- total_norm.py
    _mutant("total norm: halves read before they are written", "a missing barrier", "total_norm",
            "        __syncthreads();\n        if (threadIdx.x < apart)", "        if (threadIdx.x < apart)"),
    _mutant("total norm: the last pair is left out", "a wrong bound", "total_norm", "apart > 0; apart /= 2",
            "apart > 1; apart /= 2"),
    _mutant("total norm: only the first 256 parts", "a wrong bound", "total_norm",
            "i < P; i += 256) sum += parts[i]", "i < min(P, (size)256); i += 256) sum += parts[i]"),
    _mutant("total norm: each table writes the parts of the first", "an exchanged index", "total_norm",
            "parts[start:])", "parts)"),
    _mutant("total norm: finite although the sum of squares is not", "a lost term", "total_norm",
            "sqrt((A)sum)", "sqrt(sum)"),
    _mutant("clipping: a factor of 1 for a norm of NaN", "a wrong bound", "total_norm",
            "quotient > 1 ? (A)1 : quotient", "quotient < 1 ? quotient : (A)1"),
    _mutant("accumulate: without the weight", "a lost term", "updates", "a[i] += factor * x[i]", "a[i] += x[i]"),
    _mutant("adam: steps that were not made count", "a lost term", "updates", "n[6] - (unmade ? *unmade : 0)", "n[6]"),
    _mutant("adam: one group is corrected", "a wrong bound", "updates", "i < groups; i += blockDim.x", "i < 1; ++i"),
    _mutant("adam: moments corrected by each other's beta", "an exchanged index", "updates",
            "sqrt(1 - pow(n[5], steps))", "sqrt(1 - pow(n[4], steps))"),
    *(
        _mutant(f"{name}: a skipped step is made", "a lost term", "updates",
                f"{arguments}, const bool* when) {{\n    if (is_off(when)) return;",
                f"{arguments}, const bool* when) {{")
        for name, arguments in (
            ("adam", "adam(Rows rows, const double* numbers, const A* factor"),
            ("sgd", "sgd(Rows rows, const double* numbers, const A* factor"),
            ("average", "average(Rows rows, double share"), ("accumulate", "accumulate(Rows rows, double weight"),
            ("copy", "copy(Rows rows"),
        )
    ),
    # --- decision.py
    _mutant("decision: a loss of NaN is finite", "a lost term", "decision",
            "loss_is_finite = isfinite(*loss)", "loss_is_finite = !isinf(*loss)"),
    _mutant("decision: the norm does not count", "a lost term", "decision",
            "is_made = loss_is_finite && isfinite(*norm)", "is_made = loss_is_finite"),
    _mutant("decision: a row of bad steps does not end", "a lost term", "decision",
            "        counts->in_a_row = 0;\n", ""),
    _mutant("decision: an overflow with a factor of 1", "a wrong bound", "decision", "*scale > 1", "*scale >= 1"),
    _mutant("decision: the longest row is the last", "a wrong bound", "decision",
            "if (counts->in_a_row > counts->longest) counts", "counts"),
    _mutant("decision: the optimiser takes no step back", "a lost term", "decision",
            "    counts->unmade += 1;\n", ""),
    _mutant("scale: a skipped step is among the clean ones", "a lost term", "decision",
            "        scale[0] /= 2;\n        scale[2] = 0;", "        scale[0] /= 2;"),
    _mutant("scale: the inverse is that of the last step", "a lost term", "decision",
            "    scale[1] = 1 / scale[0];\n", ""),
    _mutant("scale: it grows beyond float32", "a lost term", "decision", "if (2 * scale[0] <= largest) ", ""),
]
