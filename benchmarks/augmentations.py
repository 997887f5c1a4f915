"""Compare the named augmentations by cross-validation, with the body frozen.

    python benchmarks/augmentations.py --data FOLDER --cache FEATURES

The views are those of `ImageData(augment=name)`, epochs 0 to 3, of the photographs in
`annotations/trainval.txt`; folds, head and schedule are those of `choose_defaults.py`.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from choose_defaults import Config, folds, fuse, judge, make_backbone, pool, train_head

from petnb.augmentation import named_augmentations
from petnb.data import ImageData
from petnb.transforms import make_loader

EPOCHS, SEEDS = 4, 5


@torch.inference_mode()
def features(data: ImageData, body: torch.nn.Module, augment: bool, epoch: int) -> torch.Tensor:
    "Pooled features of one view of each training photograph, in the order of the items."
    dataset, rows = make_loader(data, "train", augment=augment).dataset, []
    for start in range(0, len(dataset), 16):  # type: ignore[arg-type]
        keys = range(start, min(start + 16, len(dataset)))  # type: ignore[arg-type]
        images = torch.stack([dataset[epoch, key][0] for key in keys])
        batch = images.float().div_(127.5).sub_(1).to(memory_format=torch.channels_last)
        rows.append(pool(body(batch)))
    return torch.cat(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the named augmentations.")
    parser.add_argument("--data", type=Path, required=True, help="the data set's folder")
    parser.add_argument("--cache", type=Path, required=True, help="the features' folder")
    arguments = parser.parse_args()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    body = fuse(make_backbone())
    views: dict[str, torch.Tensor] = {}
    for name in ["valid", *named_augmentations(224)]:
        file = arguments.cache / f"{name}.npy"
        chosen = "none" if name == "valid" else name
        data = ImageData.oxford_pets(arguments.data, valid="official", augment=chosen, workers=0)
        if not file.exists():
            epochs = range(1 if chosen == "none" else EPOCHS)
            made = [features(data, body, name != "valid", epoch) for epoch in epochs]
            np.save(file, torch.stack(made).numpy())
        views[name] = torch.from_numpy(np.load(file))
        print(name, flush=True)
    items = data.on_side("train")
    classes = np.array([data.vocab.index(label) for label in items["label"]])
    labels, given = torch.from_numpy(classes), views.pop("valid")[0]
    hits, losses = {name: np.zeros(len(labels)) for name in views}, dict.fromkeys(views, 0.0)
    for name in views:
        for seed in range(SEEDS):
            for number, (train, valid) in enumerate(folds(classes, seed)):
                head = train_head(Config(), views[name], labels, train, 100 * seed + number)
                with torch.inference_mode():
                    *scores, right = judge(head(given[valid]), labels[valid])
                hits[name][valid] += right / SEEDS
                losses[name] += scores[2] * len(valid) / len(labels) / SEEDS
        change = 100 * (hits[name] - hits["petnb"])
        error = change.std(ddof=1) / math.sqrt(len(change))
        print(
            f"{name:15} accuracy {100 * hits[name].mean():.2f} %  loss {losses[name]:.3f}  "
            f"difference {change.mean():+.2f} ± {error:.2f} points",
            flush=True,
        )


if __name__ == "__main__":
    main()
