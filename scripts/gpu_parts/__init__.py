"""The parts of scripts/gpu_check.py. Each runs in a process of its own.

    part        what a part, its items and their setting are; the file of results
    plan        which parts there are, in which order, and how many seconds each may take
    runner      starts the parts, ends those that are late, and goes on after a failure
    child       what runs in the process of a part
    summary     the table of results, and the targets

    facts       the GPU, its driver, the libraries
    probes      what CuPy, cuBLAS and the driver can do there, one question each
    suite       the device tests; once more, those that failed
    training    the same training as on the CPU, twice the same bits, the first step with and without compiled kernels
    cases       the models that are timed
    peers       the same models in PyTorch
    timing      how long a step or a call takes
    speed       training steps, here and in PyTorch; long runs
    kernels     which kernels a step consists of, and how long each takes; what NVIDIA's sanitizer says of ours
    micro       variants of an operation beside each other, where there is a choice

An item returns a row: {"ok": True, False, or None if it was not run, "result": a sentence, and figures}.
"""
