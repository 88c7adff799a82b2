"""Tell OpenBLAS, before NumPy loads it, not to keep a core busy after each matrix product.

Its threads wait for the next product by spinning, 2²⁶ cycles (20 ms) unless told otherwise. Between two products of a
training step other threads have work to do (`backend.deal`), and lose a core to the waiting: a quarter of the step's
time on two cores. 2¹⁶ cycles bridge the gap to a product that follows at once. A NumPy that was imported before
scratchvit has read its settings already; then `OPENBLAS_THREAD_TIMEOUT=16` in the environment does the same.
"""

import os

os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "16")
