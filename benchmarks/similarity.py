"""How far collections of images are from a pretrained body's memory, and the advice for them.

    python benchmarks/similarity.py --data FOLDER --out benchmarks/similarity.jsonl

Collections whose answer is known (photographs of pets, the same ones changed, drawings, digits,
pages of text, noise) are shown to the packaged EfficientNet-Lite0 at two sizes. Only photographs of
the training list are read, and nothing of them is kept. Each result is appended as soon as it is
there, and those that are in the file already are skipped; the tables go to the same name with the
ending `.md`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from PIL import Image, ImageDraw, ImageOps
from rows import add_row, read_rows
from sklearn.datasets import load_digits, load_sample_image

from petnb.adviser import Advice, advise, measure_shift, pooled_by_depth, watch_batch_norms
from petnb.data import ImageData, open_image
from petnb.learner import Learner, vision_learner
from petnb.model import LITE0, packaged_weights
from petnb.transforms import valid_transform

SIZES = (224, 96)
N = 100  # Images of a collection
SIDE = 256  # Pixels of an image that is made here
ADVISED = ("photographs at 224", "photographs at 96", "drawn pets at 224", "drawn pets at 96")
INTRODUCTION = """# Similarity to the pretraining

Written by `python benchmarks/similarity.py --data FOLDER --out benchmarks/similarity.jsonl`.
Body: the packaged EfficientNet-Lite0. The shift of a batch norm is explained in chapter 06a;
`early`, `middle` and `late` are its means over thirds of the body's 49 batch norms, `early` with
its jackknife error over ten batches; `confidence` is the mean over the images of the largest
probability that the original 1000-class classifier gives. Photographs are of the training list
only.
"""
Images = list[Image.Image]
Change = Callable[[Image.Image, np.random.Generator], Image.Image]


# Collections


@lru_cache
def pets(root: Path, n: int = N) -> Images:
    "Photographs of the training list, of all breeds."
    items = ImageData.oxford_pets(root, valid="official").on_side("train")
    return [open_image(path) for path in items.sample(n, random_state=0)["path"]]


def one_breed(root: Path) -> Images:
    "All photographs of the training list of the breed that has most of them."
    items = ImageData.oxford_pets(root, valid="official").on_side("train")
    label = items["label"].value_counts().sort_index().idxmax()
    return [open_image(path) for path in items[items["label"] == label]["path"]]


def changed(root: Path, change: Change) -> Images:
    "The photographs of `pets`, each changed."
    rng = np.random.default_rng(0)
    return [change(image, rng) for image in pets(root)]


def turn_hue(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    "Each colour replaced by the opposite one, equally light."
    hue, *others = image.convert("HSV").split()
    return Image.merge("HSV", [hue.point(lambda v: (v + 128) % 256), *others]).convert("RGB")


def crop(image: Image.Image, rng: np.random.Generator, side: int) -> Image.Image:
    "A square from anywhere in the picture."
    x, y = (int(rng.integers(0, length - side + 1)) for length in image.size)
    return image.crop((x, y, x + side, y + side))


def blur(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    "Reduced to 32 pixels and enlarged again."
    return image.resize((32, 32)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def sample_crops(root: Path, name: str) -> Images:
    "Crops of one photograph that scikit-learn brings along."
    rng = np.random.default_rng(0)
    whole = Image.fromarray(load_sample_image(name))
    return [crop(whole, rng, 224) for _ in range(N)]


def drawn(root: Path) -> Images:
    "Pets that petnb draws, ten breeds."
    data = ImageData.drawn_pets(images_per_breed=12, pixels=SIDE)
    return [open_image(path) for path in data.items["path"].iloc[:N]]


def digits(root: Path) -> Images:
    "scikit-learn's handwritten digits, 8 x 8 pixels, enlarged."
    images = [Image.fromarray((a * 15.9).astype(np.uint8)) for a in load_digits().images[:N]]
    return [i.resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB") for i in images]


def pages(root: Path) -> Images:
    "Black letters on white, in lines."
    rng = np.random.default_rng(0)
    images = [Image.new("RGB", (SIDE, SIDE), "white") for _ in range(N)]
    for image in images:
        for y in range(8, SIDE - 6, 14):
            line = "".join(rng.choice(list("abcdefghij klmno pqrst "), 38))
            ImageDraw.Draw(image).text((8, y), line, fill="black")
    return images


def noise(root: Path, side: int) -> Images:
    "A random colour at each of side x side places, enlarged."
    rng = np.random.default_rng(0)
    small = [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(N)]
    return [Image.fromarray(a).resize((SIDE, SIDE), Image.Resampling.NEAREST) for a in small]


COLLECTIONS: dict[str, Callable[[Path], Images]] = {
    "pets": pets,
    "pets, 10 of them": partial(pets, n=10),
    "pets, 20 of them": partial(pets, n=20),
    "pets, 400 of them": partial(pets, n=400),
    "pets, one breed": one_breed,
    "pets, upside down": partial(changed, change=lambda image, rng: ImageOps.flip(image)),
    "pets, opposite colours": partial(changed, change=turn_hue),
    "pets, negative": partial(changed, change=lambda image, rng: ImageOps.invert(image)),
    "pets, grey": partial(changed, change=lambda image, rng: image.convert("L").convert("RGB")),
    "crops of a photograph of a temple": partial(sample_crops, name="china.jpg"),
    "crops of a photograph of a flower": partial(sample_crops, name="flower.jpg"),
    "drawn pets": drawn,
    "pets, crops of 64 pixels": partial(changed, change=partial(crop, side=64)),
    "pets, crops of 32 pixels": partial(changed, change=partial(crop, side=32)),
    "pets, blurred to 32 pixels": partial(changed, change=blur),
    "digits": digits,
    "pages of text": pages,
    "noise": partial(noise, side=SIDE),
    "one plain colour": partial(noise, side=1),
}


# Measuring


@lru_cache
def original_classifier() -> tuple[torch.Tensor, torch.Tensor]:
    "Weights and biases from the head's input to ImageNet's 1000 classes."
    weights = packaged_weights(timm.create_model(LITE0))
    return weights["classifier.weight"], weights["classifier.bias"]


@torch.inference_mode()
def measure(learn: Learner, images: Images, size: int) -> dict[str, float | str]:
    "Shift in ten batches, and how sure the original classifier is of its first choice."
    views = torch.stack([valid_transform(size)(image) for image in images])
    weight, bias = original_classifier()
    sure = []
    with watch_batch_norms(learn.model.body) as seen:
        for batch in views.tensor_split(10):
            pooled = pooled_by_depth(learn.model, learn.prepare(batch))["head's input"]
            sure.append((pooled @ weight.T + bias).softmax(1).amax(1))
    shift = measure_shift(seen)
    third = len(shift.curve) // 3
    return {
        "early": shift.early,
        "spread": shift.spread,
        "middle": float(shift.curve[third:-third].mean()),
        "late": float(shift.curve[-third:].mean()),
        "confidence": float(torch.cat(sure).mean()),
    }


def advice_row(advice: Advice) -> dict[str, Any]:
    "The advice as plain values."
    return {
        "shift": advice.shift.early,
        "article": advice.article,
        "cs231n": advice.cs231n,
        "strategy": advice.strategy,
        "reason": advice.reason,
        "text": repr(advice),
        "probes": advice.probes.reset_index().to_dict("records"),
        "learning": advice.learning.reset_index().to_dict("records"),
    }


def advised(root: Path, name: str) -> dict[str, Any]:
    "Advice for the photographs, or for the drawn pets, at two sizes."
    source, size = name.split(" at ")
    data = (
        ImageData.oxford_pets(root, valid="official", size=int(size))
        if source == "photographs"
        else ImageData.drawn_pets(images_per_breed=40, size=int(size))
    )
    return advice_row(advise(vision_learner(data)))


# Telling


def markdown(table: pd.DataFrame) -> str:
    "A table as Markdown."
    rows = [[str(value) for value in row] for row in table.to_numpy()]
    lines = [list(table.columns), ["---"] * len(table.columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shift_table(results: list[dict[str, Any]], size: int) -> str:
    "The collections at one size, in the order of their early shift."
    rows = sorted((r for r in results if r.get("size") == size), key=lambda row: row["early"])
    table = pd.DataFrame(
        {
            "collection": row["collection"],
            "images": row["images"],
            "early": f"{row['early']:.3f} ± {row['spread']:.3f}",
            "middle": f"{row['middle']:.3f}",
            "late": f"{row['late']:.3f}",
            "confidence": f"{row['confidence']:.2f}",
        }
        for row in rows
    )
    return markdown(table)


def probe_table(row: dict[str, Any]) -> str:
    "Accuracy by depth."
    table = pd.DataFrame(
        {
            "depth": probe["depth"],
            "accuracy": f"{probe['accuracy']:.1%} ± {probe['error']:.1%}",
            "gain over the head's input": f"{probe['gain']:+.1%} ± {probe['gain_error']:.1%}",
        }
        for probe in row["probes"]
    )
    return markdown(table)


def report(results: list[dict[str, Any]]) -> str:
    "All tables, with what their columns mean."
    parts = [INTRODUCTION]
    for size in SIZES:
        parts += [f"\n## At {size} pixels\n", shift_table(results, size)]
    for row in results:
        if "advice" in row:
            parts += [f"\n## Advice for {row['advice']} pixels\n", f"```\n{row['text']}\n```\n"]
            parts += [probe_table(row)]
    return "\n".join(parts) + "\n"


def main() -> None:
    "Measure what is missing in the file, and write the tables."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="the data set's folder")
    parser.add_argument("--out", type=Path, required=True, help="one JSON line a result")
    arguments = parser.parse_args()
    results = read_rows(arguments.out)

    def keep(result: dict[str, Any]) -> None:
        results.append(result)
        print(result, flush=True)
        add_row(arguments.out, result)

    done = {(row.get("collection"), row.get("size")) for row in results}
    learn = vision_learner(replace(ImageData.drawn_pets(images_per_breed=12), workers=0))
    for size in SIZES:
        for name, make in COLLECTIONS.items():
            if (name, size) not in done:
                images = make(arguments.data)
                row = {"collection": name, "size": size, "images": len(images)}
                keep(row | measure(learn, images, size))
    advised_already = {row.get("advice") for row in results}
    for name in ADVISED:
        if name not in advised_already:
            keep({"advice": name} | advised(arguments.data, name))
    arguments.out.with_suffix(".md").write_text(report(results))


if __name__ == "__main__":
    main()
