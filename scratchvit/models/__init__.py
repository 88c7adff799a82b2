"""Models, a file per paper, under timm's names."""

from scratchvit.models import vit
from scratchvit.models.registry import create_model, list_models, model_config
