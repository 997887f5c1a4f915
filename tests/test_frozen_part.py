"""What stands still is computed once, and learning goes on as if it were computed each time."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_speed import FAMILIES, images_for, learner, same, shake_statistics
from torch import Tensor, nn

from petnb.callbacks import ProgressiveResizing, WeightAverage
from petnb.data import ImageData
from petnb.frozen_part import frozen_part, whole_body
from petnb.learner import Callback, Fit, Learner, get_preds, still_part
from petnb.model import Classifier, create_classifier, freeze_to
from petnb.speed import FeatureExtractor, relative_error

CUT = {"resnet18", "tf_efficientnet_lite0", "convnext_atto", "vit_tiny_patch16_224"}


@pytest.fixture(scope="module")
def data() -> ImageData:
    """100 training images in four batches."""
    return ImageData.drawn_pets(images_per_breed=12, pixels=128, size=64, batch_size=25, workers=0)


def thawed(data: ImageData, n: int = 1, **options: Any) -> Learner:
    learn = learner(data, **options)
    learn.freeze_to(n)
    return learn


@pytest.mark.parametrize("name", FAMILIES)
def test_the_parts_make_up_the_body(name: str) -> None:
    model = create_classifier(name, 3, pretrained=False, train_bn=False)
    shake_statistics(model.body)
    freeze_to(model, 1)
    model.train()
    images = images_for(model)
    part = frozen_part(model, images.shape[-1])
    assert part is not None or name not in CUT
    if part is None:
        return
    assert part.rest is not None
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(3)
        expected = model.features(images)
        torch.manual_seed(3)
        assert relative_error(part.rest(part.module(images)), expected) < 1e-5
    assert not any(parameter.requires_grad for parameter in part.module.parameters())
    learnt = {id(p) for p in part.rest.parameters() if p.requires_grad}
    assert learnt == {id(parameter) for parameter in model.groups()[1]}


def test_all_or_nothing() -> None:
    model = create_classifier("resnet18", 3, pretrained=False, train_bn=False)
    freeze_to(model, 0)
    assert frozen_part(model, 64) is None
    freeze_to(model, -1)
    part = frozen_part(model, 64)
    assert part is not None
    assert part.rest is None
    assert part.digest() == whole_body(model).digest()
    drifting = create_classifier("resnet18", 3, pretrained=False, train_bn=True)
    freeze_to(drifting, 1)
    assert frozen_part(drifting, 64) is None


def test_a_part_that_rolls_dice_does_not_stand_still() -> None:
    model = create_classifier("resnet18", 3, pretrained=False, train_bn=False)
    freeze_to(model, 1)
    model.body.act1 = nn.Sequential(model.body.act1, nn.Dropout(0.5))
    assert frozen_part(model.eval(), 64) is not None
    assert frozen_part(model.train(), 64) is None


def test_dice_in_the_rest_are_no_obstacle() -> None:
    model = create_classifier("resnet18", 3, pretrained=False, train_bn=False)
    freeze_to(model, 1)
    model.body.layer4 = nn.Sequential(model.body.layer4, nn.Dropout(0.5))
    assert frozen_part(model.train(), 64) is not None


def test_a_feature_map_for_fastai_s_head() -> None:
    model = create_classifier("resnet18", 3, head="fastai", pretrained=False, train_bn=False)
    freeze_to(model, 1)
    part = frozen_part(model.train(), 64)
    assert part is not None
    assert part.rest is not None
    images = images_for(model)
    with torch.no_grad():
        found = part.rest(part.module(images))
        assert relative_error(found, model.features(images)) < 1e-5


def test_a_body_without_a_graph_is_left_whole() -> None:
    class Asks(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images if images.sum() > 0 else images.clone()

    model: Classifier = create_classifier("resnet18", 3, pretrained=False, train_bn=False)
    freeze_to(model, 1)
    model.body.act1 = Asks()
    assert frozen_part(model, 64) is None


def test_the_caller_s_dice_are_left_alone() -> None:
    model = create_classifier("resnet18", 3, pretrained=False, train_bn=False)
    freeze_to(model, 1)
    before = torch.get_rng_state()
    frozen_part(model, 64)
    assert torch.equal(torch.get_rng_state(), before)


def test_as_many_views_as_epochs_are_fresh_views(data: ImageData) -> None:
    """The same weights, to the bit, with what stands still kept or computed each time."""
    fresh, kept, nothing_kept = thawed(data), thawed(data), thawed(data, cache_bytes=0)
    fresh.fit(2, 1e-3)
    kept.fit(2, 1e-3, views=2)
    nothing_kept.fit(2, 1e-3, views=2)
    assert same(fresh, kept)
    assert same(fresh, nothing_kept)


def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the images that any extractor gets from now on."""
    shapes: list[tuple[int, ...]] = []
    original = FeatureExtractor.__call__

    def count(self: FeatureExtractor, images: Tensor) -> Tensor:
        if ":" in self.name:
            shapes.append(tuple(images.shape))
        return original(self, images)

    monkeypatch.setattr(FeatureExtractor, "__call__", count)
    return shapes


def test_what_stands_still_is_computed_once(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = computed(monkeypatch)
    learn = thawed(data)
    learn.fit(3, 1e-3, views=1)
    assert sum(shape[0] for shape in shapes) == 100
    assert "frozen part" in learn.choices
    learn.fit(1, 1e-3, views=1)
    assert sum(shape[0] for shape in shapes) == 100


def test_a_change_of_a_frozen_weight_is_noticed(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = computed(monkeypatch)
    learn = thawed(data)
    learn.fit(1, 1e-3, views=1)
    with torch.no_grad():
        next(learn.model.body.parameters()).data[0] += 0.01
    learn.fit(1, 1e-3, views=1)
    assert sum(shape[0] for shape in shapes) == 200


@pytest.mark.parametrize(
    "options", [{"mixup": 0.4}, {"callbacks": [ProgressiveResizing(32)]}, {"accumulate": 50}]
)
def test_with_other_options(data: ImageData, options: dict[str, Any]) -> None:
    learn = thawed(data)
    early = [parameter.clone() for parameter in learn.groups[0]]
    late = [parameter.clone() for parameter in learn.groups[1]]
    learn.fit(2, 1e-3, **options)
    assert all(torch.equal(*pair) for pair in zip(early, learn.groups[0], strict=True))
    assert not any(torch.equal(*pair) for pair in zip(late, learn.groups[1], strict=True))


def test_the_finder_leaves_no_trace(data: ImageData) -> None:
    plain, searched = thawed(data), thawed(data)
    searched.lr_find(n_steps=10)
    for learn in (plain, searched):
        learn.fit(1, 1e-3)
    assert same(plain, searched)


# -- Validation ----------------------------------------------------------------------------------


def move_late(learn: Learner) -> None:
    """As a step of training does."""
    with torch.no_grad():
        for parameter in learn.groups[-2]:
            parameter.data += 1e-3


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("level", [2, 12])
def test_logits_in_two_parts_are_those_of_the_whole(
    data: ImageData, tmp_path: Path, level: int, precision: str
) -> None:
    """To the bit, whether what crosses is new, kept in memory or read from a file."""
    data, options = replace(data, batch_size=8), {"precision": precision, "n_groups": None}
    whole = thawed(data, level, **options)
    learn, again = (thawed(data, level, cache_folder=tmp_path, **options) for _ in range(2))
    still = [still_part(learn), still_part(again)]
    for part, one in zip((still[0], still[0], still[1]), (learn, learn, again), strict=True):
        assert part is not None
        move_late(whole)
        one.model.load_state_dict(whole.model.state_dict())
        found = get_preds(one, data.valid, part)
        assert all(map(torch.equal, found, get_preds(whole, data.valid)))
    assert any("in batches" in key for key in again.store.kept)


def read_to_validate(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images extractors that are not the training's get from now on."""
    counted: list[int] = []
    original = FeatureExtractor.__call__

    def count(self: FeatureExtractor, images: Tensor) -> Tensor:
        if ":" not in self.name and images.shape[1] == 3:
            counted.append(len(images))
        return original(self, images)

    monkeypatch.setattr(FeatureExtractor, "__call__", count)
    return counted


class Watch(Callback):
    """How many images each validation reads."""

    def __init__(self, counted: list[int]):
        self.counted, self.read = counted, list[int]()

    def before_validate(self, fit: Fit) -> None:
        self.counted.clear()

    def after_epoch(self, fit: Fit) -> None:
        self.read.append(sum(self.counted))


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_a_second_validation_reads_no_image(
    data: ImageData, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    watch = Watch(read_to_validate(monkeypatch))
    learn = thawed(data, precision=precision)
    learn.fit(3, 1e-3, callbacks=[watch])
    assert watch.read == ([20, 20, 0] if precision == "auto" else [20, 0, 0])
    learn.fit(2, 1e-3, callbacks=[watch])
    assert watch.read[3:] == [0, 0]
    scores = learn.validate()
    assert learn.recorder.history["valid_loss"].iloc[-1] == scores["valid_loss"]
    assert learn.chosen_precision in ("float32", "bfloat16")
    assert {key[1] for key in learn.store.kept} == {learn.chosen_precision}


class Thaw(Callback):
    """In the second epoch all of the body learns, in the others its late half."""

    def before_epoch(self, fit: Fit) -> None:
        freeze_to(fit.learn.model, (1, 0, 1)[fit.epoch])


@pytest.mark.parametrize("callback", [Thaw, WeightAverage])
def test_scores_are_those_without_a_store(data: ImageData, callback: type[Callback]) -> None:
    rows = []
    for cache_bytes in (0, 2**30):
        learn = thawed(data, cache_bytes=cache_bytes)
        learn.fit(3, 1e-3, callbacks=[callback()])
        assert any("in batches" in key for key in learn.store.kept) == (cache_bytes > 0)
        rows.append(learn.recorder.history.drop(columns="seconds"))
    assert rows[0].equals(rows[1])


def test_what_would_fill_the_store_is_not_kept(data: ImageData) -> None:
    learn = thawed(data)
    still = still_part(learn)
    assert still is not None
    with torch.no_grad():
        halfway = still.module(torch.zeros(20, 3, 64, 64))
    assert still_part(thawed(data, cache_bytes=4 * halfway.nbytes)) is not None
    assert still_part(thawed(data, cache_bytes=4 * halfway.nbytes - 1)) is None


class Interrupt(Callback):
    def after_step(self, fit: Fit) -> None:
        if fit.step == 6:
            raise KeyboardInterrupt


def test_a_resumed_fit_has_the_same_scores(data: ImageData, tmp_path: Path) -> None:
    """Its first validation computes what the fit that was not stopped had kept."""
    rows = []
    for stops in (False, True):
        learn = thawed(data, path=tmp_path / str(stops), precision="auto")
        if stops:
            with pytest.raises(KeyboardInterrupt):
                learn.fit(2, 1e-3, checkpoint_every=1, callbacks=[Interrupt()])
            precision = learn.fixed
            learn = thawed(data, path=tmp_path / str(stops), precision="auto")
        learn.fit(2, 1e-3, checkpoint_every=1, resume=stops)
        rows.append(learn.recorder.history.drop(columns="seconds"))
    assert learn.fixed == precision
    assert learn.chosen_precision == precision["features"]
    assert rows[0].equals(rows[1])
