"""Choose petnb's defaults by cross-validation: the head, the crop, the augmentation, the batch.

    python benchmarks/choose_defaults.py --data FOLDER --cache FEATURES \\
        --out benchmarks/choose_defaults.md

The backbone (`tf_efficientnet_lite0`, frozen) is run once over every view of every training
photograph; the pooled features are cached (about 0.6 GB), and each candidate is then a head trained
on those features for a second or so. Five stratified folds of `annotations/trainval.txt`, split
anew for each of five seeds: on one split alone, a head can lead by 0.9 points that the next split
takes back. No other list is read.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from sklearn.model_selection import StratifiedKFold
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.transforms import v2

from petnb.model import LITE0, packaged_weights

SIZE = 224
CLASSES = 37
WIDTH = 1280  # channels of the backbone's last feature map
VIEWS = 8  # augmented views cached for each image and augmentation
FOLDS = 5
SCALES = (0.08, 0.25, 0.35, 0.5, 0.7)
EVALUATIONS = ("squish224", "resize256-crop224", "resize224-crop224", "squish256-crop224")
EVALUATION = "resize256-crop224"  # the reference
AUGMENTATIONS = ("none", *(f"s{s}{j}" for s in SCALES for j in ("", "+jitter")))
PACKAGES = ("torch", "timm", "torchvision", "scikit-learn")
INTRODUCTION = """# Cross-validated defaults

How petnb's defaults were chosen: heads trained on the cached features of the frozen backbone,
cross-validated over five folds, split anew for each of {seeds} seeds. Written by
`python benchmarks/choose_defaults.py --data FOLDER --cache FEATURES --out
benchmarks/choose_defaults.md` with
{versions}. Only the {images} training
photographs of `annotations/trainval.txt` are used, for training and for judging
alike; the test list is never read. The columns: the head; `lr`, the highest learning rate of the
one-cycle schedule; `epochs`; `batch`, photographs a step; `augmentation`, a random crop and flip
(`s0.35`: at least 35 % of the area; `+jitter`: with colour jitter too; `none`: the view that
`resize256-crop224` gives); `evaluation`, how a held-out photograph becomes 224 × 224; then
accuracy and macro accuracy (mean recall over the classes in the fold) in per cent, and log loss,
each as mean ± standard deviation over folds and seeds; last the difference in accuracy from the
table's reference row, in points, photograph by photograph (averaged over seeds) with its standard
error. That paired error, not the deviation over folds, says whether two rows differ.
"""
Array = np.ndarray[Any, Any]
BICUBIC = v2.InterpolationMode.BICUBIC


# Data and backbone


def read_list(data: Path) -> tuple[list[Path], Array]:
    "The image files of the training list and their labels, 0 to 36."
    rows = [line.split() for line in (data / "annotations/trainval.txt").read_text().splitlines()]
    files = [data / "images" / f"{row[0]}.jpg" for row in rows]
    return files, np.array([int(row[1]) - 1 for row in rows])


def open_image(file: Path) -> Image.Image:
    "Read any image, whatever its name says, as RGB."
    with Image.open(file) as image:
        return image.convert("RGB")


def make_backbone() -> nn.Module:
    "The pretrained network without its classifier, in evaluation mode."
    model = timm.create_model(LITE0)
    model.load_state_dict(packaged_weights(model))
    model.reset_classifier(0, "")
    return model.eval().to(memory_format=torch.channels_last)


def fuse(module: nn.Module) -> nn.Module:
    "Fold each batch norm into the convolution before it: the same features, twice as fast."
    children = list(module.named_children())
    for _, child in children:
        fuse(child)
    for (conv_name, conv), (name, norm) in pairwise(children):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            module.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm))
            setattr(module, name, norm.act)  # timm's batch norm carries the activation
    return module


def to_tensor(image: Image.Image) -> Tensor:
    "Pixels in [-1, 1]: mean and standard deviation are both 0.5."
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(127.5).sub_(1)


def evaluation_view(name: str) -> Callable[[Image.Image], Image.Image]:
    "The evaluation transform of that name, from an image to 224 x 224."
    mode, side = name.split("-")[0].rstrip("0123456789"), int(name.split("-")[0][-3:])
    size = [side, side] if mode == "squish" else [side]
    transform: Callable[[Image.Image], Image.Image] = v2.Compose(
        [v2.Resize(size, BICUBIC, antialias=True), v2.CenterCrop(SIZE)]
    )
    return transform


def pool(maps: Tensor) -> Tensor:
    "[max, average] of a feature map over its positions."
    return torch.cat([maps.amax((2, 3)), maps.mean((2, 3))], 1)


@torch.inference_mode()
def extract(job: tuple[Path, Path, str, int]) -> str:
    """Cache one evaluation transform (view < 0), or one view of one random crop scale.

    A random crop is cached as it is and with the colour jitter, so that the two are paired.
    """
    data, cache, name, view = job
    out = cache / (f"{name}.npy" if view < 0 else f"{name}.{view}.npy")
    if out.exists():
        return name
    torch.set_num_threads(1)
    torch.manual_seed(0 if view < 0 else 1000 * (1 + SCALES.index(float(name[1:]))) + view)
    model, files = fuse(make_backbone()), read_list(data)[0]
    jitter = v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.1)
    if view < 0:
        transform = evaluation_view(name)
    else:
        scale = (float(name[1:]), 1.0)
        crop = v2.RandomResizedCrop(SIZE, scale, (3 / 4, 4 / 3), BICUBIC, antialias=True)
        transform = v2.Compose([crop, v2.RandomHorizontalFlip()])
    rows: dict[str, list[Tensor]] = {"": [], "+jitter": []}
    for start in range(0, len(files), 16):
        views = [transform(open_image(file)) for file in files[start : start + 16]]
        kinds = {"": views}
        if view >= 0:
            kinds["+jitter"] = [jitter(image) for image in views]
        for kind, images in kinds.items():
            batch = torch.stack([to_tensor(image) for image in images])
            batch = batch.to(memory_format=torch.channels_last)
            rows[kind].append(pool(model(batch)))
    if view >= 0:
        np.save(cache / f"{name}+jitter.{view}.npy", torch.cat(rows["+jitter"]).numpy())
    np.save(out, torch.cat(rows[""]).numpy())
    return name


def extract_all(data: Path, cache: Path, workers: int) -> None:
    "Cache every view that the comparison needs; what is there already is kept."
    cache.mkdir(parents=True, exist_ok=True)
    jobs = [(data, cache, name, -1) for name in EVALUATIONS]
    jobs += [(data, cache, f"s{s}", view) for view in range(VIEWS) for s in SCALES]
    start = time.perf_counter()
    with start_workers(workers) as processes:
        for done, name in enumerate(processes.map(extract, jobs), 1):
            print(f"{done}/{len(jobs)} {name} {time.perf_counter() - start:.0f} s", flush=True)


@lru_cache(2)
def load_views(cache: Path, name: str) -> Tensor:
    "The cached training views of an augmentation, (views, images, 2 * 1280)."
    if name == "none":
        return torch.from_numpy(np.load(cache / f"{EVALUATION}.npy"))[None]
    return torch.stack(
        [torch.from_numpy(np.load(cache / f"{name}.{view}.npy")) for view in range(VIEWS)]
    )


# Heads


class Average(nn.Module):
    "Keep the average-pooled half."

    def forward(self, x: Tensor) -> Tensor:
        return x[:, WIDTH:]


def linear(width: int = WIDTH) -> nn.Linear:
    "A linear layer with PyTorch's random start."
    return nn.Linear(width, CLASSES)


def zero_linear(width: int = WIDTH) -> nn.Linear:
    "A linear layer that starts at zero: every class equally likely."
    layer = linear(width)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def fastai_head() -> nn.Sequential:
    "fastai's `create_head`, as `vision_learner` builds it (Kaiming initialisation)."
    head = nn.Sequential(
        nn.BatchNorm1d(2 * WIDTH),
        nn.Dropout(0.25),
        nn.Linear(2 * WIDTH, 512, bias=False),
        nn.ReLU(),
        nn.BatchNorm1d(512),
        nn.Dropout(0.5),
        nn.Linear(512, CLASSES, bias=False),
    )
    for layer in head:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    return head


HEADS: dict[str, Callable[[], nn.Module]] = {
    "ln linear zero": lambda: nn.Sequential(Average(), nn.LayerNorm(WIDTH), zero_linear()),
    "ln linear": lambda: nn.Sequential(Average(), nn.LayerNorm(WIDTH), linear()),
    "bn linear zero": lambda: nn.Sequential(Average(), nn.BatchNorm1d(WIDTH), zero_linear()),
    "bn linear": lambda: nn.Sequential(Average(), nn.BatchNorm1d(WIDTH), linear()),
    "concat bn linear zero": lambda: nn.Sequential(
        nn.BatchNorm1d(2 * WIDTH), zero_linear(2 * WIDTH)
    ),
    "concat bn linear": lambda: nn.Sequential(nn.BatchNorm1d(2 * WIDTH), linear(2 * WIDTH)),
    "fastai": fastai_head,
    "linear zero": lambda: nn.Sequential(Average(), zero_linear()),
    "linear": lambda: nn.Sequential(Average(), linear()),
}


# Training


@dataclass(frozen=True)
class Config:
    "One candidate. It is judged under every evaluation transform at once."

    head: str = "ln linear zero"
    lr_max: float = 3e-3
    epochs: int = 4
    batch: int = 32
    augmentation: str = "s0.35"


@dataclass(frozen=True)
class Score:
    "What one candidate reached under one evaluation transform."

    accuracy: Array  # (folds * seeds,)
    macro: Array
    loss: Array
    hits: Array  # (images,) share of the seeds that were right


def one_cycle(position: float, lr_max: float, rise: float = 0.25) -> tuple[float, float]:
    "Learning rate and beta1 at `position` of the way through training."

    def cosine(start: float, end: float, x: float) -> float:
        return start + (end - start) * (1 - math.cos(math.pi * x)) / 2

    if position < rise:
        x = position / rise
        return cosine(lr_max / 25, lr_max, x), cosine(0.95, 0.85, x)
    x = (position - rise) / (1 - rise)
    return cosine(lr_max, lr_max / 1e5, x), cosine(0.85, 0.95, x)


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    "Weights decay; biases and the vectors of normalisations do not."
    weights = [p for p in module.parameters() if p.ndim > 1]
    vectors = [p for p in module.parameters() if p.ndim <= 1]
    groups = [(weights, 0.01), (vectors, 0.0)]
    return [{"params": p, "weight_decay": decay} for p, decay in groups if p]


def batches(
    images: Array, epochs: int, size: int, generator: np.random.Generator
) -> Iterator[tuple[int, float, Array]]:
    "(epoch, position in training, images) of every step; no image is dropped."
    count = math.ceil(len(images) / size)
    for epoch in range(epochs):
        for i, batch in enumerate(np.array_split(generator.permutation(images), count)):
            yield epoch, (epoch * count + i) / (epochs * count), batch


def train_head(
    config: Config, views: Tensor, labels: Tensor, images: Array, seed: int
) -> nn.Module:
    "Train one head on cached features, a fresh view each epoch (they repeat after eight)."
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(views))
    head = HEADS[config.head]().train()
    optimizer = torch.optim.AdamW(parameter_groups(head), eps=1e-5)
    for epoch, position, batch in batches(images, config.epochs, config.batch, generator):
        lr, beta = one_cycle(position, config.lr_max)
        for group in optimizer.param_groups:
            group["lr"], group["betas"] = lr, (beta, 0.99)
        rows = torch.from_numpy(batch)
        logits = head(views[order[epoch % len(views)]][rows])
        loss = F.cross_entropy(logits, labels[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return head.eval()


def judge(logits: Tensor, labels: Tensor) -> tuple[float, float, float, Array]:
    "Accuracy, macro accuracy, log loss and the hits, image by image."
    hits = (logits.argmax(1) == labels).float()
    recalls = [hits[labels == label].mean().item() for label in set(labels.tolist())]
    loss = F.cross_entropy(logits, labels).item()
    return hits.mean().item(), float(np.mean(recalls)), loss, hits.numpy()


def folds(labels: Array, seed: int) -> list[tuple[Array, Array]]:
    "Training and validation images of each fold; every seed splits anew."
    splitter = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(labels)), labels))


def cross_validate(job: tuple[Config, Path, Array, int]) -> dict[str, Score]:
    "The scores of one candidate under each evaluation transform."
    config, cache, classes, seeds = job
    torch.set_num_threads(1)
    labels, views = torch.from_numpy(classes), load_views(cache, config.augmentation)
    features = {n: torch.from_numpy(np.load(cache / f"{n}.npy")) for n in EVALUATIONS}
    runs: dict[str, list[list[float]]] = {name: [] for name in EVALUATIONS}
    hits = {name: np.zeros(len(labels)) for name in EVALUATIONS}
    for seed in range(seeds):
        for number, (train, valid) in enumerate(folds(classes, seed)):
            head = train_head(config, views, labels, train, 100 * seed + number)
            for name, inputs in features.items():
                with torch.inference_mode():
                    *values, right = judge(head(inputs[valid]), labels[valid])
                runs[name].append(values)
                hits[name][valid] += right / seeds
    columns = {name: np.array(rows).T for name, rows in runs.items()}
    return {n: Score(columns[n][0], columns[n][1], columns[n][2], hits[n]) for n in EVALUATIONS}


def start_workers(count: int) -> ProcessPoolExecutor:
    "Processes started afresh: forking one that has run torch can hang."
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"))


# Report


class Report:
    "Runs candidates in parallel, remembers their scores, and writes a table at a time."

    def __init__(self, out: Path, cache: Path, labels: Array, seeds: int, workers: int) -> None:
        self.out, self.cache, self.labels, self.seeds = out, cache, labels, seeds
        self.processes = start_workers(workers)
        self.scores: dict[Config, dict[str, Score]] = {}
        versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
        out.write_text(INTRODUCTION.format(images=len(labels), seeds=seeds, versions=versions))

    def score(self, configs: list[Config]) -> None:
        "Cross-validate those that have no score yet."
        new = [config for config in dict.fromkeys(configs) if config not in self.scores]
        jobs = [(config, self.cache, self.labels, self.seeds) for config in new]
        for config, scores in zip(new, self.processes.map(cross_validate, jobs), strict=True):
            self.scores[config] = scores

    def table(
        self, title: str, configs: list[Config], evaluations: tuple[str, ...], reference: Config
    ) -> None:
        "One row a candidate and evaluation transform, best accuracy first."
        self.score([*configs, reference])
        first = self.scores[reference][EVALUATION]
        lines = [
            f"\n## {title}\n",
            "| head | lr | epochs | batch | augmentation | evaluation "
            "| accuracy | macro | log loss | vs reference |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        rows = [(config, name) for config in configs for name in evaluations]
        for config, name in sorted(rows, key=lambda r: -self.scores[r[0]][r[1]].accuracy.mean()):
            score = self.scores[config][name]
            values = [100 * score.accuracy, 100 * score.macro, score.loss]
            accuracy, macro, loss = ((v.mean(), v.std(ddof=1)) for v in values)
            change = 100 * (score.hits - first.hits)
            error = change.std(ddof=1) / math.sqrt(len(change))
            same = (config, name) == (reference, EVALUATION)
            lines.append(
                f"| {config.head} | {config.lr_max:g} | {config.epochs} | {config.batch} "
                f"| {config.augmentation} | {name} | {accuracy[0]:.2f} ± {accuracy[1]:.1f} "
                f"| {macro[0]:.2f} ± {macro[1]:.1f} | {loss[0]:.3f} ± {loss[1]:.3f} "
                f"| {'reference' if same else f'{change.mean():+.2f} ± {error:.2f}'} |"
            )
        text = "\n".join(lines)
        with self.out.open("a") as file:
            file.write(text + "\n")
        print(text, flush=True)

    def heads(self, lr_max: float, epochs: int) -> None:
        "Every head at one learning rate and length."
        configs = [Config(head, lr_max, epochs) for head in HEADS]
        title = f"Heads at lr_max {lr_max:g}, epochs {epochs}"
        self.table(title, configs, (EVALUATION,), configs[0])


def main() -> None:
    "Cache the features that are missing, then write every table."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="the data set's folder")
    parser.add_argument("--out", type=Path, required=True, help="the Markdown file to write")
    parser.add_argument("--cache", type=Path, required=True, help="the features' folder")
    parser.add_argument("--seeds", type=int, default=5, help="splits into folds (default: 5)")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    arguments = parser.parse_args()
    extract_all(arguments.data, arguments.cache, arguments.workers)
    labels = read_list(arguments.data)[1]
    report = Report(arguments.out, arguments.cache, labels, arguments.seeds, arguments.workers)
    first = Config()
    report.heads(3e-3, 4)
    report.heads(3e-3, 1)
    report.heads(3e-3, 10)
    report.table(f"Evaluation transform: {first.head}", [first], EVALUATIONS, first)
    configs = [Config(augmentation=name) for name in AUGMENTATIONS]
    report.table(f"Augmentation and evaluation: {first.head}", configs, EVALUATIONS, first)
    report.heads(1e-3, 4)
    report.heads(1e-2, 4)
    configs = [Config(batch=size) for size in (16, 32, 64)]
    report.table(f"Batch size: {first.head}", configs, (EVALUATION,), first)
    report.processes.shutdown()


if __name__ == "__main__":
    main()
