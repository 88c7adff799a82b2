"""Tell OpenBLAS, before NumPy loads it, not to keep a core busy after each matrix product.

By default, its threads wait for the next product in a busy loop of 2²⁶ cycles (20 ms). Between two products of a
training step, our own threads (`backend.deal`) lose a core to this: a quarter of the step's time on two cores. 2¹⁶
cycles are enough to wait for a product that follows immediately. If NumPy was imported before scratchvit, its settings
have already been read; then set `OPENBLAS_THREAD_TIMEOUT=16` in the environment.
"""

import os

os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "16")
