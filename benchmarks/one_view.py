"""Which view to reuse, where each photograph is to go through the body only once: cross-validated.

    PETNB_PHOTOS=FOLDER python benchmarks/one_view.py     # some minutes; writes one_view.md

Only the 672 photographs to learn from are read, for learning and for judging alike. Five folds,
split anew for each of five seeds; head, rate, epochs and batches are those of `speed.py`.
"""

import os
from copy import deepcopy
from pathlib import Path

import machine
import numpy as np
import torch
from choose_defaults import HEADS, Config, folds, judge, train_head
from torch import Tensor
from torchvision.transforms import v2

from petnb.data import ImageData
from petnb.learner import vision_learner
from petnb.speed import FeatureExtractor
from petnb.transforms import ImageDataset, train_transform, valid_transform

SEEDS, SIZE = 5, 224
WAYS: dict[str, tuple[v2.Transform, list[int]]] = {  # Transform, and the views of a first seed
    "random, scale .35 to 1, one for each of four epochs": (train_transform(SIZE), [0, 1, 2, 3]),
    "random, scale .35 to 1, reused": (train_transform(SIZE), [0]),
    "random, scale .7 to 1, reused": (train_transform(SIZE, (0.7, 1.0)), [0]),
    "random, scale .9 to 1, reused": (train_transform(SIZE, (0.9, 1.0)), [0]),
    "the middle, as for checking, reused": (valid_transform(SIZE), [0]),
}
INTRODUCTION = """# Which view to reuse

Written by `python benchmarks/one_view.py`. {machine}; {versions}. Packaged
EfficientNet-Lite0 frozen, 224 pixels, four epochs of the head at 3e-3, batches of 64. Five folds of
the 672 photographs to learn from, split anew for each of five seeds (and with other random views);
the 221 are not read. Mean ± standard deviation over the 25 folds; the difference is paired,
photograph by photograph, from the second row, with its standard error.

| view | accuracy, % | macro, % | log loss | difference, points |
|---|---|---|---|---|
"""


def features(data: ImageData, way: v2.Transform, view: int) -> Tensor:
    "What the body makes of one view of each photograph to learn from."
    items = data.on_side("train")
    targets = [data.vocab.index(label) for label in items["label"]]
    dataset = ImageDataset(items["path"].tolist(), targets, way, data.seed, 2 * SIZE)
    learn, found = vision_learner(data, show_progress=False), list[Tensor]()
    extractor = None
    for some in np.array_split(np.arange(len(items)), len(items) // 64):
        views = torch.stack([image for image, _ in dataset.__getitems__([(view, i) for i in some])])
        prepared = learn.prepare(views)
        extractor = extractor or FeatureExtractor(learn.model, prepared)
        found.append(extractor(prepared))
    return torch.cat(found)


def main() -> None:
    "Measure, and write the page."
    data = ImageData.oxford_pets(os.environ["PETNB_PHOTOS"], valid="official", size=SIZE)
    head = vision_learner(data, show_progress=False).model.head
    HEADS["petnb"] = lambda: deepcopy(head)
    labels = torch.tensor([data.vocab.index(label) for label in data.on_side("train")["label"]])
    middle = features(data, valid_transform(SIZE), 0)
    scores, hits = dict[str, np.ndarray](), dict[str, np.ndarray]()
    for name, (way, views) in WAYS.items():
        rows, right = [], np.zeros((SEEDS, len(labels)))
        for seed in range(SEEDS):
            kept = torch.stack([features(data, way, seed * len(views) + view) for view in views])
            for number, (train, valid) in enumerate(folds(labels.numpy(), seed)):
                config = Config("petnb", batch=64)
                trained = train_head(config, kept, labels, train, 100 * seed + number)
                with torch.inference_mode():
                    *values, right[seed, valid] = judge(trained(middle[valid]), labels[valid])
                rows.append(values)
        scores[name], hits[name] = np.array(rows), right.mean(0)
        print(name, scores[name].mean(0), scores[name].std(0), flush=True)
    versions = ", ".join(f"{name} {number}" for name, number in machine.versions().items())
    page = INTRODUCTION.format(machine=machine.processor(), versions=versions)
    reference = hits[list(WAYS)[1]]
    for name, found in scores.items():
        (accuracy, macro, loss), (spread, macro_spread, loss_spread) = found.mean(0), found.std(0)
        difference = 100 * (hits[name] - reference)
        error = difference.std(ddof=1) / len(labels) ** 0.5
        page += (
            f"| {name} | {100 * accuracy:.2f} ± {100 * spread:.1f} | {100 * macro:.2f} ± "
            f"{100 * macro_spread:.1f} | {loss:.3f} ± {loss_spread:.3f} "
            f"| {difference.mean():+.2f} ± {error:.2f} |\n"
        )
    Path(__file__).with_suffix(".md").write_text(page)


if __name__ == "__main__":
    main()
