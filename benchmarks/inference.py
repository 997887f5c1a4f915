"""How long an answer takes: PyTorch and onnxruntime, one photograph at a time and in batches.

    python benchmarks/inference.py --data FOLDER --out benchmarks/inference.md

`--data` is a folder of photographs; without it drawn pets are used. The head has random weights,
which changes no time. Contestants take turns and the best of each counts, since all else is
disturbance. Decoding and scaling are told apart from the network.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import onnxruntime
import pandas as pd
import torch
from machine import processor, versions

from petnb.data import ImageData, image_files
from petnb.inference import Predictor, latency
from petnb.learner import vision_learner, write_model
from petnb.model_card import markdown_table
from petnb.onnx_export import compare_speed, export_onnx

INTRODUCTION = """# Speed of answers

Written by `python benchmarks/inference.py`. {machine}; {versions}.
Backbone {backbone}, {size} pixels, {n} classes. Largest difference of a probability between
PyTorch in float32 and onnxruntime on {images} images: {difference:.1e}.
Load average at the end {load:.1f}. (Were it over the number of cores, only the order of the rows
would mean anything.)

## The network alone, milliseconds an image

{network}

## One {kind}, from file to answer, median milliseconds

{steps}
"""


def as_markdown(table: pd.DataFrame, first: str) -> str:
    """The table with its index as its first column, numbers with one digit."""
    return markdown_table(table.map("{:.1f}".format).rename_axis(first).reset_index())


def measure(data: ImageData, backbone: str, files: list[Path], kind: str, repeats: int) -> str:
    """The page in Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        learn = vision_learner(data, backbone, show_progress=False)
        for parameter in learn.model.head.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        file = write_model(learn, Path(folder) / "model.safetensors")
        contestants = {
            "PyTorch, float32": Predictor.load(file, precision="float32"),
            "PyTorch, bfloat16": Predictor.load(file, precision="bfloat16"),
            "onnxruntime": Predictor.load(export_onnx(file)),
        }
        network = compare_speed(contestants, files[0], (1, 8, 32), repeats)
        steps = {name: latency(one, files[0], 2 * repeats) for name, one in contestants.items()}
        plain, onnx = (
            contestants[name].probabilities(files[:64])
            for name in ("PyTorch, float32", "onnxruntime")
        )
    medians = pd.DataFrame({name: table["median ms"] for name, table in steps.items()}).T
    used = {**versions(), "onnxruntime": onnxruntime.__version__}
    return INTRODUCTION.format(
        machine=processor(), versions=", ".join(f"{key} {value}" for key, value in used.items()),
        backbone=learn.model.architecture, size=data.size, n=len(data.vocab),
        images=len(plain), difference=float((plain - onnx).abs().max()),
        load=os.getloadavg()[0], kind=kind,
        network=as_markdown(network, "by"), steps=as_markdown(medians, "by"),
    )  # fmt: skip


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of photographs (default: drawn pets)")
    parser.add_argument("--backbone", default="lite0")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/inference.md"))
    arguments = parser.parse_args()
    data = ImageData.drawn_pets(size=224)
    files = list(image_files(arguments.data or data.root))[::10]
    kind = "photograph" if arguments.data else "drawn pet"
    page = measure(data, arguments.backbone, files, kind, arguments.repeats)
    arguments.out.write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
