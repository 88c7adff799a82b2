"""Small errors in the CUDA text of attention by tensor cores: what a lane holds, rows and tiles, and sums."""

from mutants import kernel_mutant as _mutant

FLASH_MUTANTS = [
    # --- mma.py
    _mutant(
        "mma: rows r + 8 of A for columns further on", "an exchanged index", "mma",
        "{upper.at[0], lower.at[0], upper.at[1], lower.at[1]}", "{upper.at[0], upper.at[1], lower.at[0], lower.at[1]}",
    ),
    _mutant(
        "mma: rows 1 and 8 of B exchanged", "an exchanged index", "mma",
        "x[pitch]), pair(x[8 * pitch], ", "x[8 * pitch]), pair(x[pitch], ",
    ),
    _mutant(
        "mma: half of what a lane has of a row", "a wrong bound", "mma", "{word(x), word(x + 8)}",
        "{word(x), word(x + 4)}",
    ),
    _mutant(
        "mma: C for A, number by number", "an exchanged index", "mma",
        "{to_tf32(c->at[0]), to_tf32(c->at[2]), to_tf32(c->at[1])", "{to_tf32(c->at[0]), to_tf32(c->at[1]), "
        "to_tf32(c->at[2])",
    ),
    # --- flash_tiles.py, flash.py, flash_backward.py
    _mutant(
        "flash: images and heads exchanged", "an exchanged index", "flash_tiles",
        "x.at + b * x.b + h * x.h", "x.at + h * x.b + b * x.h", "flash",
    ),
    _mutant(
        "flash: a mask of the image instead of the head", "an exchanged index", "flash_tiles",
        "of.mask + b * of.mask_b + h * of.mask_h", "of.mask + h * of.mask_b + b * of.mask_h", "flash",
    ),
    _mutant(
        "flash: a bias of the key instead of the query", "an exchanged index", "flash_tiles",
        "bias[n * of.bias_n + m * of.bias_m]", "bias[m * of.bias_n + n * of.bias_m]", "flash",
    ),
    _mutant(
        "flash: the key after the last", "a wrong bound", "flash_tiles", "m >= of.M ||", "m > of.M ||", "flash",
    ),
    _mutant(
        "flash: rows after the last are read", "a wrong bound", "flash_tiles",
        "from + row < rows && column < place.of.d", "column < place.of.d", "flash",
    ),
    _mutant(
        "flash: columns after the last are read", "a wrong bound", "flash_tiles",
        "from + row < rows && column < place.of.d", "from + row < rows", "flash",
    ),
    _mutant(
        "flash: TF32 cut off", "a lost term", "flash_tiles", "to_tf32(__uint_as_float(numbers.x))", "numbers.x",
        "flash",
    ),
    _mutant(
        "flash: the largest of two lanes of four", "a lost term", "flash_tiles",
        "return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));", "return x;", "flash",
    ),
    _mutant(
        "flash: another image's mask of dropout", "an exchanged index", "flash_tiles",
        "(first_query + n) * of.M + m", "n * of.M + m", "flash",
    ),
    _mutant("flash: the sum is not rescaled", "a lost term", "flash", "    l *= rescale;\n", ""),
    _mutant("flash: the value is not rescaled", "a lost term", "flash", "        y[i].at[2 * r] *= rescale;\n", ""),
    _mutant(
        "flash: the largest finite number is 0", "a wrong bound", "flash", "{LOWEST_FLOAT, LOWEST_FLOAT}", "{0, 0}",
    ),
    _mutant(
        "flash: rows without a key are NaN", "a lost case", "flash", "r, sum == 0 ? 0 : 1 / sum", "r, 1 / sum",
    ),
    _mutant(
        "flash: tiles read before they are there", "a missing barrier", "flash",
        "        __syncthreads();\n        if (place.first >=", "        if (place.first >=",
    ),
    _mutant(
        "flash: tiles written before all have read those before", "a missing barrier", "flash",
        "        __syncthreads(); // until all have read the tiles before\n", "",
    ),
    _mutant(
        "flash: own rows read before they are there", "a missing barrier", "flash_tiles",
        "    __syncthreads();\n    #pragma unroll", "    #pragma unroll", "flash",
    ),
    _mutant(
        "flash: a bias although its gradient may be wanted", "a lost case", "flash",
        "and (bias is None or not is_recording())", "",
    ),
    _mutant("flash: dS without Σ y dy", "a lost term", "flash_backward", "ds * kept - dot", "ds * kept", "flash"),
    _mutant("flash: dP of what was dropped", "a lost term", "flash_backward", "ds * kept - dot", "ds - dot", "flash"),
    _mutant(
        "flash: dk without the scale", "a lost factor", "flash_backward", "dk_sums, r, of.scale", "dk_sums, r, 1",
        "flash",
    ),
    _mutant(
        "flash: queries of the next tile, sums of this one", "a missing barrier", "flash_backward",
        "        __syncthreads();\n        if (place.first >= of.M)", "        if (place.first >= of.M)", "flash",
    ),
    _mutant(
        "flash: P beyond the last query", "a wrong bound", "flash_backward",
        "n < of.N ? logs[place.first_query + n] : INFINITY", "logs[place.first_query + n]", "flash",
    ),
]
