"""Recipes do what their numbers say, and their benchmark counts honestly."""

import importlib.util
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from petnb.data import ImageData
from petnb.learner import Callback, Fit, Learner, vision_learner
from petnb.recipes import RECIPES, Recipe, callbacks_of, find_recipe, follow, train_everything

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def few() -> ImageData:
    return ImageData.drawn_pets(images_per_breed=3, pixels=64, size=64, batch_size=8)


@pytest.fixture
def learn(few: ImageData, tmp_path: Path) -> Learner:
    return vision_learner(few, show_progress=False, path=tmp_path)


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("recipes", BENCHMARKS / "recipes.py")
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_article_and_fast_are_what_petnb_train_always_did() -> None:
    assert RECIPES["article"] == Recipe(4, 3e-3, 2, (1e-6, 1e-4), 0, 0.0, 0.0, 0)
    assert replace(RECIPES["fast"], fine_tune_epochs=2) == RECIPES["article"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 0), ("lr", 0), ("fine_tune_epochs", -1), ("fine_tune_lr", (0, 1e-3)),
     ("start_size", -32), ("mixup", -0.1), ("average", 1.0), ("tta", -1)],
)  # fmt: skip
def test_a_senseless_number_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is .*; it is "):
        find_recipe("article", **{name: value})


def test_what_is_not_changed_stays() -> None:
    changed = find_recipe("best", lr=0.01, mixup=None)
    assert asdict(changed) == asdict(RECIPES["best"]) | {"lr": 0.01}


def test_no_callbacks_where_there_is_nothing_to_do() -> None:
    assert callbacks_of(RECIPES["article"]) == []


class Watch(Callback):
    """Notes the sides of the images and the mixing of each epoch."""

    def __init__(self) -> None:
        self.seen: list[tuple[int | None, bool]] = []

    def after_epoch(self, fit: Fit) -> None:
        self.seen.append((fit.size, fit.mix is not None))


def test_sizes_grow_and_images_mix_in_the_second_stage_only(
    learn: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, shown = Watch(), callbacks_of
    monkeypatch.setattr("petnb.recipes.callbacks_of", lambda recipe: [*shown(recipe), watch])
    recipe = Recipe(1, 3e-3, 3, (1e-5, 1e-3), start_size=32, mixup=0.4, average=0.9)
    follow(learn, recipe)
    assert [size for size, _ in watch.seen] == [32, 32, 64]
    assert all(mixed for _, mixed in watch.seen)
    assert learn.n_epochs == 4


def test_without_epochs_of_everything_the_body_stays(learn: Learner) -> None:
    before = {name: tensor.clone() for name, tensor in learn.model.state_dict().items()}
    train_everything(learn, Recipe(fine_tune_epochs=0))
    assert all(torch.equal(before[k], v) for k, v in learn.model.state_dict().items())
    follow(learn, Recipe(1, fine_tune_epochs=0))
    changed = [k for k, v in learn.model.state_dict().items() if not torch.equal(before[k], v)]
    assert changed
    assert all(name.startswith("head") for name in changed)


def test_candidates_start_from_the_same_head(
    benchmark: ModuleType, learn: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = Recipe(1, fine_tune_epochs=1, fine_tune_lr=(1e-5, 1e-3))
    monkeypatch.setattr(benchmark, "CANDIDATES", {"article": quick, "twin": quick})
    path = tmp_path / "chosen.jsonl"
    benchmark.choose_on(learn, 0, path, ["article", "twin"])
    head, article, twin = benchmark.read_rows(path)
    assert head["name"] == "head"
    assert article["last"] == twin["last"]
    assert article["averaged"] != article["last"]
    assert "twin, last weights, tta view | 1 |" in benchmark.chosen_table([head, article, twin])


def test_the_tables_say_what_is_missing(benchmark: ModuleType) -> None:
    assert benchmark.measured_table([]) == benchmark.chosen_table([]) == "Not measured yet."
    score = {"accuracy": 0.9, "macro_accuracy": 0.8, "loss": 0.3, "losses": [0.3, 0.3]}
    rows = [{"seed": s, "name": "best", "seconds": 60.0, "plain": score} for s in range(2)]
    assert rows[0]["name"] in benchmark.measured_table(rows)
    assert "not measured" in benchmark.measured_table(rows)
    fast = [{"seed": 0, "name": "fast", "seconds": 20.0, "plain": score}]
    assert "3.0 x" in benchmark.measured_table(rows + fast)
