"""What a model costs, from shapes alone: parameters, multiply-adds, attention, and memory at its peak."""

from scratchvit.costs.counting import Cost, OpCost, cost
from scratchvit.costs.memory import PeakMemory, peak_memory
