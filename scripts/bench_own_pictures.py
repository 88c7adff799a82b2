"""Are the default settings for one's own pictures any good? Compares them with torchvision's ResNet-18 from scratch.

    python scripts/bench_own_pictures.py FOLDER… [--sizes 224 96] [--seconds 300] [--out results.md]

For every folder, `scratchvit train --data FOLDER` runs to its end. Then a ResNet-18 of torchvision trains for the given
time on the same training pictures, once for each size of its images, and is evaluated on the same test pictures (on the
validation pictures if the folder has no test split). Both use all cores. Needs torch and torchvision.

The ResNet-18 is trained as is common: random resized crops and flips, AdamW with a learning rate of 0.001 that is
warmed up and then follows a cosine over the time, batches of 32, label smoothing 0.1. Its pictures are decoded once and
kept.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scratchvit.data import ImageFolder  # noqa: E402
from scratchvit.data.folder import load_folder  # noqa: E402
from scratchvit.data.images import open_image  # noqa: E402
from scripts import records  # noqa: E402
from tests.support.peers import import_torchvision  # noqa: E402

PROGRAM = [sys.executable, "-m", "scratchvit", "train", "--skip-bad", "--json"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--sizes", nargs="*", type=int, default=[224], help="sides of the ResNet-18's images")
    parser.add_argument("--seconds", type=float, default=300, help="how long each ResNet-18 trains")
    parser.add_argument("--out", type=Path, help="file for the table (default: only printed)")
    args = parser.parse_args()

    head = ["folder", "train", "judged on", "ours", "time", *(f"ResNet-18, {size}²" for size in args.sizes)]
    rows = []
    for folder in args.folders:
        splits = load_folder(folder, 8, 0.1, 0, skip_bad=True)
        part, held_out = splits.held_out
        accuracy, seconds = ours(folder)
        peers = [peer(splits.train, held_out, size, args.seconds) for size in args.sizes]
        rows.append([
            folder.name, f"{len(splits.train):,}", f"{len(held_out):,} {part}", f"{accuracy:.1%}", f"{seconds:.0f} s",
            *(f"{found:.1%} ({epochs:.1f} epochs)" for found, epochs in peers),
        ])
        print(*rows[-1], sep="  ", flush=True)
    text = f"{records.markdown(head, rows)}\n{date.today()}, {records.commit()}, {records.processor()}\n"
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")


def ours(folder: Path) -> tuple[float, float]:
    """Train with the default settings: the accuracy on the held-out pictures, and the seconds of the process."""
    with tempfile.TemporaryDirectory() as run:
        begun = time.perf_counter()
        words = [*PROGRAM, "--data", str(folder.resolve()), "--out", f"{run}/run"]
        done = subprocess.run(words, check=True, capture_output=True, text=True, cwd=ROOT)
        result = json.loads(done.stdout.splitlines()[-1])
        seconds = time.perf_counter() - begun
    accuracy = result["test_accuracy"]
    return (result["val_accuracy"] if accuracy is None else accuracy), seconds


def peer(train: ImageFolder, held_out: ImageFolder, size: int, seconds: float) -> tuple[float, float]:
    """Train torchvision's ResNet-18: the accuracy on the held-out pictures, and the epochs it got through."""
    torchvision = import_torchvision()
    import torch
    from torchvision import transforms

    torch.manual_seed(0)
    begun = time.perf_counter()
    normalise = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    augment = transforms.Compose([
        transforms.RandomResizedCrop(size, scale=(0.35, 1.0)), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
        normalise,
    ])
    centre = transforms.Compose([
        transforms.Resize(size), transforms.CenterCrop(size), transforms.ToTensor(), normalise,
    ])
    model = torchvision.models.resnet18(num_classes=len(train.classes))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    loader = torch.utils.data.DataLoader(_Pictures(train, augment, 1.5 * size), 32, shuffle=True, drop_last=True)
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    seen = 0
    while (share := (time.perf_counter() - begun) / seconds) < 1:
        for images, labels in loader:
            share = (time.perf_counter() - begun) / seconds
            if share >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * min(1, 10 * share) * (1 + math.cos(math.pi * share)) / 2
            optimizer.zero_grad()
            loss_of(model(images), labels).backward()
            optimizer.step()
            seen += len(labels)

    model.eval()
    right = 0
    with torch.no_grad():
        for images, labels in torch.utils.data.DataLoader(_Pictures(held_out, centre, 1.5 * size), 64):
            right += int((model(images).argmax(1) == labels).sum())
    return right / len(held_out), seen / len(train)


class _Pictures:
    """The pictures of a data set for PyTorch's loader, decoded once, and reduced to about `side` pixels."""

    def __init__(self, dataset: ImageFolder, transform: Any, side: float):
        self.dataset, self.transform, self.side = dataset, transform, side
        self.decoded: dict[int, Image.Image] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if index not in self.decoded:
            picture = open_image(self.dataset.paths[index])
            ratio = max(1.0, min(picture.size) / self.side)
            smaller = [round(side / ratio) for side in picture.size]
            self.decoded[index] = picture.resize(smaller, Image.Resampling.BICUBIC)
        return self.transform(self.decoded[index]), int(self.dataset.labels[index])


if __name__ == "__main__":
    main()
