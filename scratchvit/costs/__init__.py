"""What a model costs.

From shapes alone: parameters, multiply-adds and attention (counting.py), and peak memory (memory.py).
Measured: the time of each op (profiling.py), beside what the machine allows (machine.py); a GPU's memory (measured.py).
"""

from scratchvit.costs.counting import Cost, OpCost, cost
from scratchvit.costs.memory import PeakMemory, peak_memory
