"""The libraries that ours is compared with."""

import functools
import warnings

import pytest

from tests.support.seeds import moved


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
    return _quietly("timm")


def import_torchvision():
    """torchvision; without it the test is skipped."""
    import_timm()                           # which declares its operators
    return _quietly("torchvision")


def import_transformers():
    """Hugging Face transformers; without it the test is skipped."""
    import_timm()                           # transformers imports both where they are installed
    return _quietly("transformers")


def _quietly(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


def randomise(peer, seed=0):
    """Give a PyTorch model weights and running statistics that leave no tensor without effect; in evaluation mode.

    Freshly made models have many zeros and ones, behind which two exchanged tensors would go unnoticed.
    """
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(moved(seed))
    with torch.no_grad():
        for name, tensor in peer.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(1 + 0.5 * torch.tanh(noise))
            elif tensor.ndim > 1:           # an average of its inputs, or a token of about 1
                inputs = tensor[0].numel() if len(tensor) > 1 else 1
                tensor.copy_(noise / inputs**0.5)
            elif tensor.is_floating_point():
                tensor.copy_(0.1 * noise + (1 if name.endswith("weight") else 0))
            else:                           # the number of batches so far
                tensor.zero_()
    return peer.eval()
