"""Looking inside a model: where it attends and how it learned."""

from scratchvit.inspect.attention import attention_maps, class_attention, rollout
from scratchvit.inspect.figures import draw_attention, draw_curves, first_of_each_class, shows_attention
