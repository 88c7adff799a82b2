"""Optimisers (SGD, Adam, AdamW), gradient clipping, loss scaling, learning rate schedules, and averaged weights (EMA).

    optimizer = AdamW(param_groups(model, weight_decay=0.05), lr=1e-3)
    optimizer.zero_grad(); loss.backward(); clip_grad_norm(model.parameters(), 1.0); optimizer.step()
"""

from scratchvit.optim.decision import Decision
from scratchvit.optim.ema import EMA
from scratchvit.optim.gradients import clip_factor, clip_grad_norm, grad_norm
from scratchvit.optim.groups import param_groups
from scratchvit.optim.optimizers import SGD, Adam, AdamW, Optimizer
from scratchvit.optim.scaler import LOSS_SCALE, LossScaler
from scratchvit.optim.schedule import Schedule
from scratchvit.optim.sharded import Sharded
