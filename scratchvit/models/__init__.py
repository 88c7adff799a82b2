"""Models, one file per paper, with timm's names."""

from scratchvit.models import vit, resnet, resnet_v2, hybrid, deit  # isort: skip  (the order of the course)
from scratchvit.models import swin, swin_v2  # isort: skip
from scratchvit.models import igpt  # isort: skip
from scratchvit.models import mvit, mvit_v2  # isort: skip
from scratchvit.models import detr, detr_extended, dab_detr  # isort: skip
from scratchvit.models.registry import create_model, list_models, model_config, model_paper
