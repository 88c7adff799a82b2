"""The libraries that ours is compared with."""

import functools
import warnings

import pytest


@functools.cache
def import_timm():
    """timm; without it (or PyTorch) the test is skipped.

    timm imports torchvision, whose compiled operators do not load beside a CPU build of PyTorch. Only two are looked up
    by that import; declaring them, without a body, lets it pass.
    """
    torch = pytest.importorskip("torch")
    declared = torch.library.Library("torchvision", "DEF")
    declared.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    declared.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import_timm.declared = declared         # torch forgets the operators with the object
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("timm")
