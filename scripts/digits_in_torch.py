"""The run of `scratchvit train` on the digits, written in PyTorch: the same model, settings and data, in one file.

    python scripts/digits_in_torch.py FOLDER        # prints the test accuracy, and saves the weights in FOLDER

bench_table.py compares the time of the two processes. The splits are random ones of the same sizes, and nothing but the
weights is written. Needs torch and scikit-learn.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

EPOCHS, BATCH, LR, WEIGHT_DECAY, WARMUP_EPOCHS, EMA = 40, 32, 1e-3, 0.05, 5, 0.98
SIDE, PATCH, DIM, DEPTH, HEADS, MLP = 16, 4, 64, 4, 4, 128


class Block(nn.Module):
    """Attention and MLP, each after a layer norm and with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM, eps=1e-6), nn.LayerNorm(DIM, eps=1e-6)
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.fc1, self.fc2 = nn.Linear(DIM, MLP), nn.Linear(MLP, DIM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, N, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(B, N, 3, HEADS, DIM // HEADS).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, DIM))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """Without a class token: the mean of all tokens is classified; positions are fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, DIM, PATCH, PATCH)
        self.register_buffer("positions", sines(SIDE // PATCH))
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm, self.head = nn.LayerNorm(DIM, eps=1e-6), nn.Linear(DIM, 10)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(x).mean(1)))


def sines(side: int) -> torch.Tensor:
    """Positional embeddings (side², DIM): sines and cosines of y and x (arXiv 2205.01580)."""
    frequency = 1e4 ** (-torch.arange(DIM // 4) / (DIM // 4 - 1))
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [axis.flatten()[:, None] * frequency for axis in (x, y)]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Images uint8 (1797, 1, 16, 16) and labels, in random order."""
    path = Path(importlib.util.find_spec("sklearn").origin).parent / "datasets" / "data" / "digits.csv.gz"
    numbers = np.loadtxt(path, delimiter=",", dtype=np.float32)[np.random.default_rng(0).permutation(1797)]
    small = np.rint(numbers[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    large = [np.asarray(Image.fromarray(one).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for one in small]
    return torch.from_numpy(np.stack(large))[:, None], torch.from_numpy(numbers[:, -1].astype(np.int64))


def shifted(images: torch.Tensor) -> torch.Tensor:
    """Each image moved by up to one pixel."""
    padded, (rows, columns) = F.pad(images, (1, 1, 1, 1)), torch.randint(0, 3, (2, len(images)))
    return torch.stack([one[:, i : i + SIDE, j : j + SIDE] for one, i, j in zip(padded, rows, columns)])


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The fraction of images that is classified correctly."""
    model.eval()
    with torch.inference_mode():
        right = sum((model(x).argmax(1) == y).sum().item() for x, y in zip(images.split(256), labels.split(256)))
    return right / len(labels)


def main(folder: Path) -> None:
    torch.manual_seed(0)
    images, labels = digits()
    (train, val, test), (y, y_val, y_test) = images.split([1257, 180, 360]), labels.split([1257, 180, 360])
    mean, std = train.float().mean(), train.float().std()
    val, test = (val - mean) / std, (test - mean) / std
    model, average = ViT(), ViT()
    average.load_state_dict(model.state_dict())
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": matrices}, {"params": vectors, "weight_decay": 0.0}], lr=LR,
                                  weight_decay=WEIGHT_DECAY)
    steps = math.ceil(len(train) / BATCH)

    def rate(step: int) -> float:
        warmup, total = WARMUP_EPOCHS * steps, EPOCHS * steps
        if step < warmup:
            return (step + 1) / warmup
        return (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    best, weights = -1.0, {}
    for _ in range(EPOCHS):
        model.train()
        for chosen in torch.randperm(len(train)).split(BATCH):
            loss = F.cross_entropy(model((shifted(train[chosen]) - mean) / std), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - EMA)
        if (found := accuracy(average, val, y_val)) > best:
            best, weights = found, {name: value.clone() for name, value in average.state_dict().items()}
    average.load_state_dict(weights)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(weights, folder / "digits.pt")
    print(f"test accuracy {accuracy(average, test, y_test):.2%}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
