"""What the recipes cost and reach, and how `best` was chosen: by cross-validation.

    python benchmarks/recipes.py choose --data FOLDER --out benchmarks/recipes_chosen.jsonl
    python benchmarks/recipes.py measure --data FOLDER --out benchmarks/recipes.jsonl
    python benchmarks/recipes.py table

`choose` trains the candidates on folds of the 672 photographs of `annotations/trainval.txt` and
judges each on the fold that is left out; the 221 of the test list are never read. Each run is
judged four ways: with its last weights and with their moving average, on the plain view alone and
with four augmented views as well. `measure` trains each recipe on the 672, seed by seed, and
judges it on the 221. Both append a line for each run and skip those that are there already, so
they can be stopped and started again. `table` writes recipes.md from both files.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from petnb.callbacks import WeightAverage
from petnb.data import ImageData
from petnb.fine_tuning import unfreeze
from petnb.inference import tta
from petnb.learner import Fit, Learner, get_preds, vision_learner
from petnb.losses import macro_accuracy
from petnb.recipes import Recipe, helpers, train_head
from petnb.schedules import fit_one_cycle
from petnb.sources import k_fold

FOLDS = 5
VIEWS = 4
AVERAGE = 0.98
ARTICLE = Recipe()
LONGER = Recipe(epochs=6, lr=(1e-5, 1e-3))
CANDIDATES = {
    "article": ARTICLE,
    "longer, progressive": replace(LONGER, start_size=128),
    "longer, progressive, MixUp": replace(LONGER, start_size=128, mixup=0.4),
    "longer": LONGER,
}


class BothWeights(WeightAverage):
    "An average whose fit is remembered, so that the last weights can be judged as well."

    def before_fit(self, fit: Fit) -> None:
        super().before_fit(fit)
        self.run = fit


def judge(probabilities: Tensor, targets: Tensor) -> dict[str, Any]:
    "Accuracy, macro accuracy, log loss, and the log loss of each photograph."
    losses = F.nll_loss(probabilities.clamp_min(1e-12).log(), targets, reduction="none")
    hits = probabilities.argmax(1) == targets
    return {
        "accuracy": float(hits.float().mean()),
        "macro_accuracy": float(macro_accuracy(probabilities, targets)),
        "loss": float(losses.mean()),
        "hits": hits.int().tolist(),
        "losses": [round(loss, 4) for loss in losses.tolist()],
    }


def judge_views(learn: Learner) -> dict[str, dict[str, Any]]:
    "On the plain view alone, and with augmented views."
    logits, targets = get_preds(learn, learn.data.valid)
    return {
        "plain": judge(logits.softmax(1), targets),
        "tta": judge(tta(learn, VIEWS)[0], targets),
    }


def training_photographs(root: Path, fold: int) -> ImageData:
    "The 672 alone, with one fold of them held out."
    items = ImageData.oxford_pets(root, valid="official").on_side("train")
    return ImageData.from_lists(
        items["path"].tolist(), items["label"].tolist(), valid=k_fold(fold, FOLDS), seed=0
    )


def run_candidate(learn: Learner, recipe: Recipe) -> dict[str, Any]:
    "Train everything from the saved head, and judge both weights."
    learn.load("head")
    unfreeze(learn)
    average = BothWeights(AVERAGE)
    started = time.perf_counter()
    fit_one_cycle(
        learn, recipe.epochs, slice(*recipe.lr), mixup=recipe.mixup,
        callbacks=[*helpers(recipe), average],
    )  # fmt: skip
    seconds = time.perf_counter() - started
    result: dict[str, Any] = {"seconds": seconds, "averaged": judge_views(learn)}
    average.swap(average.run)
    return result | {"last": judge_views(learn)}


def read_lines(path: Path) -> list[dict[str, Any]]:
    "The runs that a file holds."
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(path: Path, row: dict[str, Any]) -> None:
    "Keep one run."
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def missing(path: Path, folds: int) -> Iterator[tuple[int, list[str]]]:
    "Each fold with the candidates that it lacks."
    done = {(row["fold"], row["name"]) for row in read_lines(path)}
    for fold in range(folds):
        if names := [name for name in CANDIDATES if (fold, name) not in done]:
            yield fold, names


def choose(root: Path, path: Path, folds: int) -> None:
    "Cross-validate the candidates on the 672."
    for fold, names in missing(path, folds):
        learn = vision_learner(training_photographs(root, fold), path=tempfile.mkdtemp(), seed=0)
        started = time.perf_counter()
        train_head(learn, ARTICLE)
        learn.save("head")
        head = {"seconds": time.perf_counter() - started, "last": judge_views(learn)}
        if not any(row["fold"] == fold and row["name"] == "fast" for row in read_lines(path)):
            append(path, {"fold": fold, "name": "fast", "recipe": asdict(Recipe(epochs=0)), **head})
        for name in names:
            result = run_candidate(learn, CANDIDATES[name])
            append(path, {"fold": fold, "name": name, "recipe": asdict(CANDIDATES[name]), **result})
            print(fold, name, {w: {v: round(s["loss"], 3) for v, s in result[w].items()}
                  for w in ("averaged", "last")}, flush=True)  # fmt: skip


def main() -> None:
    "Run what is missing."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=["choose", "measure", "table"])
    parser.add_argument("--data", type=Path, help="the data set's folder")
    parser.add_argument("--out", type=Path, help="one JSON line a run")
    parser.add_argument("--folds", type=int, default=5, help="how many of the five (default: 5)")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    choose(arguments.data, arguments.out, arguments.folds)


if __name__ == "__main__":
    main()
