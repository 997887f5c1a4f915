"""What `torch.compile` costs and gains beside petnb's own arithmetic.

    python benchmarks/compiled.py      # some minutes; writes compiled.md

Time of one image through the body of EfficientNet-Lite0 at 224 pixels, forward (features of a
frozen body) and forward and backward (learning), on noise, so that no loading is in it: as PyTorch
has it, compiled by `torch.compile`, and as petnb does it.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import processor, versions
from torch import Tensor

from petnb.learning_body import LearningModel
from petnb.model import Features, create_classifier, freeze_to
from petnb.speed import FeatureExtractor, keep_pages, seconds

IMAGES, SIZE, REPEATS = 32, 224, 7
PAGE = Path(__file__).with_suffix(".md")
TEXT = """# torch.compile

Written by `python benchmarks/compiled.py`. EfficientNet-Lite0, {images} images of {size} pixels at
once, {processor}; milliseconds an image, the best of {repeats}, taken in turns. The first two calls
of a compiled model compile it; petnb's do not include folding and choosing the precision, .6 s
for the features and 1.8 s for learning when they were timed apart (chapters 02c, 02d).

| what | forward, ms | first calls, s | forward and backward, ms | first calls, s |
|---|---|---|---|---|
{rows}

{versions}
"""


def clock(work: Callable[[], Any]) -> float:
    """Seconds that it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def learn(model: Callable[[Tensor], Tensor], images: Tensor) -> None:
    """Forward and backward."""
    model(images).float().square().mean().backward()


def look(model: Callable[[Tensor], Tensor], images: Tensor) -> None:
    """Forward alone."""
    with torch.no_grad():
        model(images)


def shortened(model: torch.nn.Module) -> Callable[[Tensor], Tensor]:
    """The same in bfloat16, as PyTorch's autocast has it."""

    def call(images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(images)  # type: ignore[no-any-return]

    return call


def main() -> None:
    """Measure, in turns, and write the table."""
    keep_pages()
    torch.manual_seed(0)
    images = torch.randn(IMAGES, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    model = create_classifier("lite0", 37)
    freeze_to(model, 0)
    model.to(memory_format=torch.channels_last).train()
    whole, body = torch.compile(model), torch.compile(Features(model))
    ways: dict[str, list[Callable[[], None]]] = {
        "PyTorch, float32": [
            lambda: look(Features(model), images), lambda: learn(model, images)],
        "PyTorch, bfloat16": [
            lambda: look(shortened(Features(model)), images),
            lambda: learn(shortened(model), images)],
        "compiled, float32": [lambda: look(body, images), lambda: learn(whole, images)],
        "compiled, bfloat16": [
            lambda: look(shortened(body), images), lambda: learn(shortened(whole), images)],
    }  # fmt: skip
    extractor, learning = FeatureExtractor(model, images), LearningModel(model, images)
    ours = [lambda: look(extractor, images), lambda: learn(learning, images)]
    ways[f"petnb, {extractor.arithmetic.precision} and {learning.precision}"] = ours
    every = [way for both in ways.values() for way in both]
    first = [clock(way) + clock(way) for way in every]
    best = [1e3 * taken / IMAGES for taken in seconds(*every, repeats=REPEATS)]
    cells = [f"{ms:.1f} | {started:.1f}" for ms, started in zip(best, first, strict=True)]
    rows = [
        f"| {name} | {forward} | {both} |"
        for name, forward, both in zip(ways, cells[::2], cells[1::2], strict=True)
    ]
    told = {"images": IMAGES, "size": SIZE, "repeats": REPEATS, "processor": processor()}
    page = TEXT.format(rows="\n".join(rows), versions=versions(), **told)
    PAGE.write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as fresh:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = fresh  # As for whoever compiles it first
        main()
