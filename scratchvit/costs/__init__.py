"""The cost of a model, from shapes alone: parameters, multiply-adds, attention, and peak memory."""

from scratchvit.costs.counting import Cost, OpCost, cost
from scratchvit.costs.memory import PeakMemory, peak_memory
