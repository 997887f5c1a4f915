"""Quick ways give the numbers of the slow ones, and nothing that is kept is ever stale."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from petnb.data import ImageData
from petnb.learner import Learner, vision_learner
from petnb.model import Classifier, create_classifier
from petnb.speed import (
    FeatureExtractor,
    FeatureStore,
    choose_precision,
    conv_norm_pairs,
    fold_batch_norms,
    keep_pages,
    relative_error,
)

FAMILIES = [
    "resnet18", "tf_efficientnet_lite0", "mobilenetv3_small_050", "regnetx_002", "densenet121",
    "convnext_atto", "vit_tiny_patch16_224", "repvgg_a0", "ghostnet_050", "hgnetv2_b0",
]  # fmt: skip


@pytest.fixture(scope="module")
def data() -> ImageData:
    """100 training images in four batches."""
    return ImageData.drawn_pets(images_per_breed=12, pixels=128, size=64, batch_size=25, workers=0)


def learner(data: ImageData, **options: Any) -> Learner:
    return vision_learner(data, show_progress=False, **{"precision": "float32", **options})


def weights(learn: Learner) -> list[Tensor]:
    return [tensor.clone() for tensor in learn.model.state_dict().values()]


def same(one: Learner, other: Learner) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


# -- Folding -------------------------------------------------------------------------------------


def images_for(model: Classifier, n: int = 2) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.randn(n, *model.config["input_size"])


@pytest.mark.parametrize("name", FAMILIES)
def test_folding_keeps_the_features(name: str) -> None:
    model = create_classifier(name, 3, pretrained=False)
    shake_statistics(model.body)
    images = images_for(model)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    extract = FeatureExtractor(model, images, "float32")
    with torch.no_grad():
        exact = model.features(images)
    assert relative_error(extract(images), exact) < 1e-4
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    has_norms = any(isinstance(module, nn.BatchNorm2d) for module in model.body.modules())
    if name == "densenet121":  # Its norms come before its convolutions
        assert extract.arithmetic.n_folded < sum(
            isinstance(module, nn.BatchNorm2d) for module in model.body.modules()
        )
    else:
        assert bool(extract.arithmetic.n_folded) == has_norms


def shake_statistics(body: nn.Module) -> None:
    """Batch norms as they are after training, not as they are born (where folding is trivial)."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for module in body.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean.uniform_(-0.5, 0.5)
                assert module.running_var is not None
                module.running_var.uniform_(0.5, 2)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)


class SharedConvolution(nn.Module):
    """One convolution before two batch norms: neither may be folded into it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)
        self.one, self.other = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        normed: Tensor = self.one(self.conv(images)) + self.other(self.conv(images))
        return normed


class UsedTwice(nn.Module):
    """The convolution's output goes into a batch norm and elsewhere, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.conv(images)
        normed: Tensor = self.norm(found)
        return normed + found


@pytest.mark.parametrize("make", [SharedConvolution, UsedTwice])
def test_what_cannot_be_folded_is_left_alone(make: Callable[[], nn.Module]) -> None:
    body = make().eval()
    shake_statistics(body)
    images = torch.randn(2, 3, 8, 8)
    folded, n = fold_batch_norms(body, images)
    assert n == 0
    with torch.no_grad():
        assert torch.equal(folded(images), body(images))


def test_a_change_in_place_ends_a_pair() -> None:
    """A batch norm behind an in-place activation is not straight behind the convolution."""
    pair = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))
    apart = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(3))
    body = nn.Sequential(pair, apart).eval()
    shake_statistics(body)
    images = torch.randn(2, 3, 8, 8)
    folded, n = fold_batch_norms(body, images)
    assert n == 1
    with torch.no_grad():
        assert relative_error(folded(images), body(images)) < 1e-5


def test_pairs_are_found_in_the_order_of_use() -> None:
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(4), nn.Conv2d(3, 4, 1)

        def forward(self, images: Tensor) -> Tensor:
            normed: Tensor = self.norm(self.conv(images))
            return normed

    body = Reversed().eval()
    assert conv_norm_pairs(body, torch.randn(1, 3, 4, 4)) == [(body.conv, body.norm)]


# -- Precision -----------------------------------------------------------------------------------


def test_inexact_bfloat16_is_refused_however_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("petnb.speed.has_bfloat16", lambda device: True)

    def seconds(*ways: Callable[[], Any], **options: int) -> list[float]:
        return [1.0 if ".exact " in str(way) else 0.1 for way in ways]

    monkeypatch.setattr("petnb.speed.seconds", seconds)

    def exact(images: Tensor) -> Tensor:
        return images

    def wrong(images: Tensor) -> Tensor:
        return 1.1 * images

    def right(images: Tensor) -> Tensor:
        return 1.01 * images

    assert choose_precision(exact, wrong, torch.ones(2, 3))[0] == "float32"
    assert choose_precision(exact, right, torch.ones(2, 3))[0] == "bfloat16"


def test_time_is_remembered_but_not_agreement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("petnb.speed.has_bfloat16", lambda device: True)
    monkeypatch.setattr("petnb.speed.seconds", lambda *ways, **options: [1.0, 0.1])
    one, key = torch.ones(2, 3), object()
    same: Callable[[Tensor], Tensor] = torch.clone
    assert choose_precision(same, same, one, key)[0] == "bfloat16"
    monkeypatch.delattr("petnb.speed.seconds")
    assert choose_precision(same, same, one, key)[0] == "bfloat16"
    assert choose_precision(same, lambda images: 2 * images, one, key)[0] == "float32"


def test_without_native_bfloat16_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("petnb.speed.has_bfloat16", lambda device: False)

    def never(images: Tensor) -> Tensor:
        raise AssertionError("called")

    chosen, reason = choose_precision(never, never, torch.ones(2, 3))
    assert chosen == "float32"
    assert "no native bfloat16" in reason


def test_an_explicit_precision_skips_the_measuring(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: Any) -> Any:
        raise AssertionError("measured")

    monkeypatch.setattr("petnb.speed.choose_precision", never)
    for precision in ("float32", "bfloat16"):
        learn = learner(data, precision=precision)
        learn.validate()
        assert learn.chosen_precision == precision


# -- What is kept --------------------------------------------------------------------------------


def test_training_on_kept_features_is_training(data: ImageData) -> None:
    """As many views as epochs: the same weights, to the bit, with and without the cache."""
    fresh, kept, nothing_kept = learner(data), learner(data), learner(data, cache_bytes=0)
    fresh.fit_one_cycle(3)
    kept.fit_one_cycle(3, views=3)
    nothing_kept.fit_one_cycle(3, views=3)
    assert same(fresh, kept)
    assert same(fresh, nothing_kept)
    assert len(kept.store.kept) == 4  # Three views, and the images held out
    assert not nothing_kept.store.kept


def test_few_views_with_and_without_the_cache(data: ImageData) -> None:
    kept, nothing_kept = learner(data), learner(data, cache_bytes=0)
    for learn in (kept, nothing_kept):
        learn.fit_one_cycle(5, 1e-2, views=2)
    assert same(kept, nothing_kept)
    fresh = learner(data)
    fresh.fit_one_cycle(5, 1e-2)
    assert not same(kept, fresh)


def test_views_are_computed_once(data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    original = FeatureExtractor.__call__

    def count(self: FeatureExtractor, images: Tensor) -> Tensor:
        counted.append(len(images))
        return original(self, images)

    monkeypatch.setattr(FeatureExtractor, "__call__", count)
    learn = learner(data)
    learn.fit_one_cycle(6, views=2)
    assert sum(counted) == 2 * 100 + 20


def test_the_quick_way_is_the_plain_way(data: ImageData) -> None:
    """Scores of folded features agree with those of the model itself, also after fine-tuning."""
    learn = learner(data)
    learn.fit_one_cycle(1)
    learn.unfreeze()
    learn.fit_one_cycle(1, 1e-3)
    scores = learn.validate()
    with torch.no_grad():
        found = [learn.model(learn.prepare(images)) for images, _ in learn.data.valid]
    targets = torch.cat([targets for _, targets in learn.data.valid])
    loss = nn.functional.cross_entropy(torch.cat(found), targets).item()
    assert scores["valid_loss"] == pytest.approx(loss, rel=1e-4)


def copied(data: ImageData, folder: Path) -> ImageData:
    """The same data in files of their own."""
    items = data.items.copy()
    folder.mkdir()
    items["path"] = [
        str(shutil.copy2(path, folder / f"{row}.jpg")) for row, path in enumerate(items["path"])
    ]
    return replace(data, items=items)


def change_weight(learn: Learner) -> None:
    with torch.no_grad():
        next(learn.model.body.parameters()).data[0] += 0.01


def change_statistic(learn: Learner) -> None:
    dict(learn.model.body.named_buffers())["bn1.running_mean"].data[0] += 0.01


def change_file(learn: Learner) -> None:
    one, other = (learn.data.on_side("valid")["path"].iloc[place] for place in (0, 3))
    shutil.copy(one, other)


def touch_file(learn: Learner) -> None:
    os.utime(learn.data.on_side("valid")["path"].iloc[0], (0, 0))


def change_size(learn: Learner) -> None:
    learn.data = replace(learn.data, size=96)


def change_precision(learn: Learner) -> None:
    learn.precision = "bfloat16"


@pytest.mark.parametrize(
    "change",
    [change_weight, change_statistic, change_file, touch_file, change_size, change_precision],
)
def test_nothing_kept_is_stale(
    data: ImageData, tmp_path: Path, change: Callable[[Learner], None]
) -> None:
    learn = learner(copied(data, tmp_path / "images"))
    learn.fit_one_cycle(1, 1e-2)
    before, keys = learn.validate(), set(learn.store.kept)
    assert learn.validate() == before
    assert set(learn.store.kept) == keys
    change(learn)
    after = learn.validate()
    assert set(learn.store.kept) - keys
    if change is not touch_file:
        assert after != before
    anew = learner(learn.data, precision=learn.precision, cache_bytes=0)
    anew.model.load_state_dict(learn.model.state_dict())
    assert anew.validate() == after


def test_seed_and_view_are_part_of_the_key(data: ImageData) -> None:
    learn = learner(data)
    learn.fit_one_cycle(2, views=2)
    n_kept = len(learn.store.kept)
    learn.fit_one_cycle(2, views=2)
    assert len(learn.store.kept) == n_kept
    learn.data = replace(learn.data, seed=7)
    learn.fit_one_cycle(1, views=1)
    assert len(learn.store.kept) == n_kept + 2  # Another view; and the images held out of seed 7


def test_the_budget_is_kept() -> None:
    store = FeatureStore(budget=10_000)
    rng = np.random.default_rng(0)
    for key in range(200):
        store.put(key, (torch.zeros(int(rng.integers(1, 3000))), torch.zeros(10)))
        store.get(int(rng.integers(0, 200)))
        held = sum(t.nbytes for tensors in store.kept.values() for t in tensors)
        assert store.used == held <= 10_000


def test_a_key_put_twice_counts_once() -> None:
    store = FeatureStore(budget=1000)
    for _ in range(5):
        store.put("key", (torch.zeros(50),))
    assert store.used == 200


# -- Memory --------------------------------------------------------------------------------------


def test_pages_can_be_kept_and_given_back() -> None:
    assert keep_pages() == keep_pages(False)
    keep_pages()


def test_the_learner_says_whether_pages_are_kept(data: ImageData) -> None:
    assert not learner(data, pages=False).pages_kept
    assert learner(data).pages_kept == keep_pages()


# -- Which precision is kept ---------------------------------------------------------------------


def measures(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    """From now on the measurement comes out so."""
    monkeypatch.setattr("petnb.speed.choose_precision", lambda *_: (precision, "made up"))


@pytest.mark.parametrize(("then", "now"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_the_key_says_which_precision_was_used(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str, now: str
) -> None:
    """Yesterday's "auto" came out otherwise: its features serve "auto", never the other name."""
    options = {"cache_folder": tmp_path, "precision": "auto"}
    measures(monkeypatch, then)
    first = learner(data, **options)
    first.fit(1, 1e-3, views=1)
    measures(monkeypatch, now)
    second = learner(data, **options)
    assert second.validate() == learner(data, precision=then).validate()
    assert second.choices["features"] == f"{then}, as kept"
    second.fit(2, 1e-3, views=2)  # The second view is new
    assert second.choices["features"].startswith(then)
    assert "as decided before" in second.choices["features"]
    assert second.chosen_precision == then
    assert {key[1] for key in second.store.kept} == {then}
    other = learner(data, **{**options, "precision": now})
    assert other.validate() == learner(data, precision=now).validate()
    assert other.chosen_precision == now


def test_a_decision_is_of_the_weights_it_was_made_for(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = learner(data, precision="auto")
    for precision in ("bfloat16", "float32"):
        measures(monkeypatch, precision)
        learn.validate()
        assert learn.chosen_precision == precision
        change_weight(learn)


def test_a_checkpoint_takes_the_precision_of_what_was_kept(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"cache_folder": tmp_path / "features", "precision": "auto", "path": tmp_path}
    measures(monkeypatch, "float32")
    learner(data, **options).validate()
    measures(monkeypatch, "bfloat16")
    learn = learner(data, **options)
    learn.validate()
    learn.fit(1, 1e-3, checkpoint_every=2)
    assert learn.fixed["features"] == learn.chosen_precision == "float32"
    assert {key[1] for key in learn.store.kept} == {"float32"}
