"""What the recipes cost and reach, and how the numbers of `best` are chosen: by cross-validation.

    python benchmarks/recipes.py choose --data FOLDER
    python benchmarks/recipes.py measure --data FOLDER
    python benchmarks/recipes.py table

`choose` trains the candidates on folds of the 672 photographs of `annotations/trainval.txt` and
judges each on the fold that is left out; the 221 of the test list are never read. Each run is
judged four ways, at the cost of one: with its last weights and with their moving average, on the
plain view alone and with four augmented views as well. `measure` trains each recipe of
`petnb.recipes` on the 672, seed by seed, and judges it on the 221. Both append a line for each run
to a file beside this one and skip what is there already, so they can be stopped and started again.
`table` writes recipes.md from both files, and says of what is missing that it is.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from machine import processor, versions
from rows import add_row, read_rows
from torch import Tensor
from torch.nn import functional as F

from petnb.callbacks import WeightAverage
from petnb.data import ImageData
from petnb.fine_tuning import unfreeze
from petnb.inference import tta
from petnb.learner import Fit, Learner, get_preds, vision_learner
from petnb.losses import macro_accuracy, wilson_interval
from petnb.recipes import RECIPES, Recipe, callbacks_of, train_everything, train_head
from petnb.schedules import fit_one_cycle
from petnb.sources import k_fold

HERE = Path(__file__).resolve().parent
CHOSEN, MEASURED, PAGE = (HERE / f"recipes{end}" for end in ("_chosen.jsonl", ".jsonl", ".md"))
FOLDS = 5
VIEWS = 4  # augmented views beside the plain one
AVERAGE = 0.98  # share that the moving average keeps at each step
LONGER = Recipe(fine_tune_epochs=6, fine_tune_lr=(1e-5, 1e-3))
CANDIDATES = {  # in the order in which a fold tries them
    "article": Recipe(),
    "longer": LONGER,
    "longer, faster": replace(LONGER, fine_tune_lr=(1e-4, 1e-3)),
    "longer, progressive": replace(LONGER, start_size=128),
    "longer, progressive, MixUp": replace(LONGER, start_size=128, mixup=0.4),
}
Row = dict[str, Any]


# -- Judging -------------------------------------------------------------------------------------


def judge(probabilities: Tensor, targets: Tensor) -> Row:
    "Accuracy, macro accuracy, log loss, and the log loss of each photograph."
    losses = F.nll_loss(probabilities.clamp_min(1e-12).log(), targets, reduction="none")
    hits = probabilities.argmax(1) == targets
    return {
        "accuracy": float(hits.float().mean()),
        "macro_accuracy": float(macro_accuracy(probabilities, targets)),
        "loss": float(losses.mean()),
        "losses": [round(loss, 4) for loss in losses.tolist()],
    }


def judge_views(learn: Learner, views: int = VIEWS) -> Row:
    "On the plain view alone, and with augmented views where there are any."
    logits, targets = get_preds(learn, learn.data.valid)
    plain = {"plain": judge(logits.softmax(1), targets)}
    return plain | ({"tta": judge(tta(learn, views)[0], targets)} if views else {})


# -- Choosing ------------------------------------------------------------------------------------


class BothWeights(WeightAverage):
    "An average whose fit is remembered, so that the last weights can be judged as well."

    def before_fit(self, fit: Fit) -> None:
        super().before_fit(fit)
        self.run = fit


def training_photographs(root: Path, fold: int) -> ImageData:
    "The 672 alone, with one fold of them held out."
    items = ImageData.oxford_pets(root, valid="official").on_side("train")
    paths, labels = items["path"].tolist(), items["label"].tolist()
    return ImageData.from_lists(paths, labels, valid=k_fold(fold, FOLDS), seed=0)


def run_candidate(learn: Learner, recipe: Recipe) -> Row:
    "Train everything from the saved head, and judge both weights."
    learn.load("head")
    unfreeze(learn)
    average, rate = BothWeights(AVERAGE), slice(*recipe.fine_tune_lr)
    callbacks, started = [*callbacks_of(recipe), average], time.perf_counter()
    fit_one_cycle(learn, recipe.fine_tune_epochs, rate, mixup=recipe.mixup, callbacks=callbacks)
    result: Row = {"seconds": time.perf_counter() - started, "averaged": judge_views(learn)}
    average.swap(average.run)
    return result | {"last": judge_views(learn)}


def choose_on(learn: Learner, fold: int, path: Path, names: list[str]) -> None:
    "Run these candidates on one fold, each from the same head."
    started = time.perf_counter()
    train_head(learn, Recipe())
    learn.save("head")
    seconds = time.perf_counter() - started
    if not any(row["fold"] == fold and row["name"] == "head" for row in read_rows(path)):
        add_row(
            path, {"fold": fold, "name": "head", "seconds": seconds, "last": judge_views(learn)}
        )
    for name in names:
        recipe = asdict(CANDIDATES[name])
        result = run_candidate(learn, CANDIDATES[name])
        add_row(path, {"fold": fold, "name": name, "recipe": recipe, **result})


def choose(root: Path, path: Path, folds: int) -> None:
    "Cross-validate the candidates on the 672."
    for fold in range(folds):
        done = {row["name"] for row in read_rows(path) if row["fold"] == fold}
        if names := [name for name in CANDIDATES if name not in done]:
            data = training_photographs(root, fold)
            learn = vision_learner(data, path=tempfile.mkdtemp(), seed=0)
            choose_on(learn, fold, path, names)


# -- Measuring -----------------------------------------------------------------------------------


def measure_one(learn: Learner, recipe: Recipe) -> Row:
    "Train from the beginning, and judge as the recipe says."
    started = time.perf_counter()
    train_head(learn, recipe)
    train_everything(learn, recipe)
    return {"seconds": time.perf_counter() - started, **judge_views(learn, recipe.tta)}


def measure(root: Path, path: Path, seeds: int) -> None:
    "Every recipe in turn for each seed, so that all meet the same load of the machine."
    for seed in range(seeds):
        done = {row["name"] for row in read_rows(path) if row["seed"] == seed}
        for name in RECIPES:
            if name not in done:
                data = ImageData.oxford_pets(root, valid="official", seed=seed)
                learn = vision_learner(data, seed=seed)
                row = {"seed": seed, "name": name, "recipe": asdict(RECIPES[name])}
                add_row(path, row | {"machine": versions()} | measure_one(learn, RECIPES[name]))


# -- Tables ----------------------------------------------------------------------------


def ways(rows: list[Row]) -> dict[str, dict[int, Row]]:
    "What was judged, by candidate, weights and view; then by fold."
    found: dict[str, dict[int, Row]] = {}
    for row in rows:
        for weights in ("last", "averaged"):
            for view, score in row.get(weights, {}).items():
                name = ", ".join([row["name"], f"{weights} weights", f"{view} view"])
                found.setdefault(name, {})[row["fold"]] = score
    return found


def chosen_table(rows: list[Row]) -> str:
    "Each candidate with its difference in log loss from the article, photograph by photograph."
    found, lines = ways(rows), []
    reference = found.get("article, last weights, plain view", {})
    for name, folds in found.items():
        loss = float(np.mean([score["loss"] for score in folds.values()]))
        hits = float(np.mean([score["accuracy"] for score in folds.values()]))
        both = [fold for fold in folds if fold in reference]
        pairs = [np.subtract(folds[fold]["losses"], reference[fold]["losses"]) for fold in both]
        told = "-"
        if pairs:
            gaps = np.concatenate(pairs)
            told = f"{gaps.mean():+.3f} ± {gaps.std(ddof=1) / len(gaps) ** 0.5:.3f}"
        lines.append((loss, [name, str(len(folds)), f"{hits:.1%}", f"{loss:.3f}", told]))
    header = ["candidate", "folds", "accuracy", "log loss", "log loss less the article's"]
    return markdown(header, [cells for _, cells in sorted(lines)])


def measured_table(rows: list[Row]) -> str:
    "Each recipe on the 221: mean and standard deviation over the seeds, and its cost."
    lines = []
    shared = {row["seed"] for row in rows if row["name"] == "fast"}
    cheapest = {row["seed"]: row["seconds"] for row in rows if row["name"] == "fast"}
    for name in RECIPES:
        mine = [row for row in rows if row["name"] == name]
        for view in ("plain", "tta"):
            scores = pd.DataFrame([row[view] for row in mine if view in row])
            if scores.empty:
                continue
            mean, spread = scores.mean(numeric_only=True), scores.std(ddof=1, numeric_only=True)
            low, high = wilson_interval(mean["accuracy"], len(mine[0][view]["losses"]))
            cost = [row["seconds"] / cheapest[row["seed"]] for row in mine if row["seed"] in shared]
            lines.append(
                [
                    name,
                    view,
                    str(len(scores)),
                    f"{mean['accuracy']:.1%} ± {spread['accuracy']:.1%}",
                    f"{low:.1%} to {high:.1%}",
                    f"{mean['macro_accuracy']:.1%} ± {spread['macro_accuracy']:.1%}",
                    f"{mean['loss']:.3f}",
                    f"{np.mean(cost):.1f} x" if cost else "not measured",
                ]
            )
    header = ["recipe", "view", "seeds", "accuracy", "95 % interval", "macro accuracy", "log loss",
              "training time, fast is 1"]  # fmt: skip
    return markdown(header, lines)


def markdown(header: list[str], lines: list[list[str]]) -> str:
    "A table, or that there is nothing yet."
    if not lines:
        return "Not measured yet."
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


TEXT = """# Recipes

Written by `python benchmarks/recipes.py table`, from what `choose` and `measure` have measured so
far. Packaged EfficientNet-Lite0, 224 pixels, {processor}.

## What they reach

Trained on the 672 photographs, judged on the 221 held out, which took no part in any choice; mean
and standard deviation over seeds. Training times are ratios of runs that followed each other on
the same machine. (The first stage alone, `fast`, and both stages, `article`, are also what
`accuracy.py` measures, over five seeds: see README.md.)

{measured}

## How `best` is chosen

Stratified folds of the 672 photographs to learn from; the 221 are not read. All candidates of a
fold go on from the same head, and are judged with their last weights and with their moving average
(which keeps {average}), on the plain view and with {views} augmented views as well. The last column
is the mean difference in log loss from the article's recipe, photograph by photograph, with its
standard error; what lies within two of these is no difference that was seen.

{chosen}
"""


def write_page(chosen: Path, measured: Path, page: Path) -> None:
    "The tables with a few words."
    told = {
        "chosen": chosen_table(read_rows(chosen)),
        "measured": measured_table(read_rows(measured)),
        "processor": processor(),
        "average": AVERAGE,
        "views": VIEWS,
    }
    page.write_text(TEXT.format(**told), encoding="utf-8")


def main() -> None:
    "Run what is missing."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=["choose", "measure", "table"])
    parser.add_argument("--data", type=Path, help="the data set's folder")
    parser.add_argument("--folds", type=int, default=FOLDS, help="how many of the five")
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0 (default: 5)")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.what == "choose":
        choose(arguments.data, CHOSEN, arguments.folds)
    if arguments.what == "measure":
        measure(arguments.data, MEASURED, arguments.seeds)
    write_page(CHOSEN, MEASURED, PAGE)


if __name__ == "__main__":
    main()
