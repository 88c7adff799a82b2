"""Looking inside a model: where it attends, how it learned, what it costs."""

from scratchvit.inspect.attention import attention_maps, class_attention, rollout
from scratchvit.inspect.cost import Cost, OpCost, cost
from scratchvit.inspect.figures import draw_attention, draw_curves, first_of_each_class, shows_attention
from scratchvit.inspect.memory import PeakMemory, peak_memory
