"""The loop under every optimiser, loss and mixture, and what its callbacks promise each other."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.optim import list_optimizers  # type: ignore[attr-defined]
from torch import Tensor, nn

from petnb.callbacks import CSVLogger, EarlyStopping, SaveModel, WeightAverage
from petnb.data import ImageData
from petnb.learner import (
    Callback,
    Fit,
    Learner,
    NonFiniteError,
    pieces,
    vision_learner,
)
from petnb.learning_body import LearningModel
from petnb.losses import FocalLoss, LabelSmoothing, class_weights, mixing
from petnb.optimizers import OPTIMIZERS, create_optimizer, optimizer_maker, set_rates
from petnb.speed import MICRO_BATCH


@pytest.fixture(scope="module")
def data() -> ImageData:
    """100 training images in five batches, small enough for many fits."""
    return ImageData.drawn_pets(images_per_breed=12, pixels=128, size=32, batch_size=20, workers=0)


def learner(data: ImageData, **options: Any) -> Learner:
    return vision_learner(data, "resnet10t", pretrained=False, show_progress=False, **options)


def states(learn: Learner) -> list[Tensor]:
    return [tensor.clone() for tensor in learn.model.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# -- Optimisers ----------------------------------------------------------------------------------

# bitsandbytes and Apex need CUDA, adahessian second derivatives, kron compiles for a minute
NOT_HERE = ("bnb", "fused", "adahessian", "kron")


def tiny_step(name: str) -> tuple[torch.optim.Optimizer, float, float]:
    """Twenty steps of a two-layer net whose momentum moves; the loss before and after."""
    dice = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 6, generator=dice)
    targets = (inputs[:, 0] > 0).long()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
        optimizer = create_optimizer([list(net[0].parameters()), list(net[2].parameters())],
                                     make=name)  # fmt: skip
        losses = []
        for step in range(20):
            set_rates(optimizer, [(1e-3, 0.95 - step / 100), (1e-2, 0.95 - step / 100)])
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(inputs), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
    return optimizer, losses[0], losses[-1]


@pytest.mark.parametrize("name", [*OPTIMIZERS, "lamb", "lion", "nadamw", "sgdw", "adan", "muon"])
def test_optimiser_learns_and_its_momentum_moves(name: str) -> None:
    optimizer, before, after = tiny_step(name)
    assert after < before
    in_force = set_rates(optimizer, [(1e-3, 0.5), (1e-2, 0.5)])
    assert [lr for lr, _ in in_force] == [1e-3, 1e-2]
    group = optimizer.param_groups[0]
    assert group["lr"] == 1e-3
    if name in ("rmsprop", "adagrad"):
        assert in_force[0][1] == 0
        assert not group.get("momentum")
    else:
        assert in_force[0][1] == 0.5
        assert 0.5 in (group.get("momentum"), group.get("betas", [None])[0])


@pytest.mark.parametrize(
    "name", [name for name in map(str, list_optimizers()) if not name.startswith(NOT_HERE)]
)
def test_every_optimiser_of_timm_can_be_named(name: str) -> None:
    """Each moves the weights (whether it learns in twenty steps at this rate is its own affair)."""
    _, before, after = tiny_step(name)
    assert math.isfinite(after)
    assert after != before


def test_second_derivatives_are_refused() -> None:
    with pytest.raises(ValueError, match="adahessian wants second derivatives"):
        create_optimizer([list(nn.Linear(2, 2).parameters())], make="adahessian")


def test_unknown_optimiser_names_its_neighbours() -> None:
    with pytest.raises(ValueError, match=r"no optimiser 'sdg'.*'sgd'"):
        optimizer_maker("sdg")


# -- Losses and mixtures -------------------------------------------------------------------------


@pytest.mark.parametrize("mixed", [{}, {"mixup": 0.4}, {"cutmix": 1.0},
                                   {"mixup": 0.4, "cutmix": 1.0}])  # fmt: skip
@pytest.mark.parametrize("loss", ["cross-entropy", "smoothing", "focal", "weighted"])
def test_losses_train_on_mixed_images(data: ImageData, loss: str, mixed: dict[str, float]) -> None:
    losses: dict[str, Any] = {
        "cross-entropy": nn.functional.cross_entropy,
        "smoothing": LabelSmoothing(),
        "focal": FocalLoss(),
        "weighted": LabelSmoothing(0.1, class_weights(data)),
    }
    learn = learner(data, loss_func=losses[loss])
    before = states(learn)
    learn.fit(1, 1e-3, **mixed)  # type: ignore[arg-type]
    assert all(math.isfinite(value) for value in learn.recorder.losses)
    assert not same(before, states(learn))


def test_mixed_images_are_repeatable(data: ImageData) -> None:
    first, second = learner(data), learner(data)
    first.fit(2, 1e-3, mixup=0.4, cutmix=1.0)
    torch.manual_seed(torch.seed())
    second.fit(2, 1e-3, mixup=0.4, cutmix=1.0)
    assert same(states(first), states(second))
    plain = learner(data)
    plain.fit(2, 1e-3)
    assert not same(states(first), states(plain))


def test_mixture_keeps_the_sum_of_the_targets() -> None:
    images, targets = torch.rand(6, 3, 16, 16), torch.arange(6)
    mix = mixing(6, mixup=1.0, cutmix=1.0)
    assert mix is not None
    for _ in range(20):
        mixed, soft = mix(images, targets)
        assert mixed.shape == images.shape
        assert torch.allclose(soft.sum(1), torch.ones(6))


def test_weight_of_a_class_moves_with_the_model_to_its_device(data: ImageData) -> None:
    loss = FocalLoss(weight=class_weights(data))
    learn = learner(data, loss_func=loss)
    assert loss.weight is not None
    assert loss.weight.device == learn.device
    assert math.isfinite(learn.validate()["valid_loss"])


# -- The loop ------------------------------------------------------------------------------------


def test_gathered_batches_are_one_large_batch(data: ImageData) -> None:
    """With a body in evaluation mode, no layer mixes images; 4 x 25 is 2 x 50 is 1 x 100."""
    found = []
    for batch_size, accumulate in ((100, 1), (50, 100), (25, 100), (25, 76)):
        learn = vision_learner(replace(data, batch_size=batch_size), show_progress=False)
        learn.fit(2, 1e-2, accumulate=accumulate)
        assert learn.recorder.images == [100, 100]
        found.append((learn.recorder.losses, list(learn.model.head.parameters())))
    for losses, parameters in found[1:]:
        assert np.allclose(losses, found[0][0], rtol=1e-5)
        for one, other in zip(parameters, found[0][1], strict=True):
            assert torch.allclose(one, other, atol=1e-5)


def test_what_is_left_of_an_epoch_is_a_step(data: ImageData) -> None:
    learn = learner(data)
    learn.fit(2, 1e-3, accumulate=60)
    assert learn.recorder.images == [60, 40, 60, 40]
    assert learn.n_steps == 4


class Poison(Callback):
    """From some step on, the loss is not a number."""

    def __init__(self, step: int):
        self.step = step

    def after_step(self, fit: Fit) -> None:
        if fit.step == self.step:
            fit.learn.loss_func = lambda logits, targets: logits.sum() * math.nan


def test_not_a_number_stops_before_the_weights_are_lost(data: ImageData) -> None:
    learn = learner(data)
    kept: list[list[Tensor]] = []

    class Keep(Callback):
        def after_step(self, fit: Fit) -> None:
            kept.append([p.detach().clone() for p in fit.learn.model.parameters()])

    with pytest.raises(NonFiniteError) as caught:
        learn.fit(2, 1e-3, callbacks=[Poison(7), Keep()])
    assert len(kept) == 7
    assert same(kept[-1], [p.detach() for p in learn.model.parameters()])
    message = str(caught.value)
    assert "step 7 (epoch 1)" in message
    assert "0.001" in message
    order = learn.data.train.batch_sampler.order(1)  # type: ignore[union-attr]
    expected = learn.data.on_side("train")["path"].iloc[order[40:60]]
    assert message.endswith(f"Its files: {', '.join(map(str, expected))}")


def test_infinite_gradient_stops_although_the_loss_is_finite(data: ImageData) -> None:
    class Steep(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor) -> Tensor:
            return value

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient * math.inf

    learn = learner(data, loss_func=lambda logits, targets: Steep.apply(logits).square().mean())
    with pytest.raises(NonFiniteError, match=r"length (nan|inf)"):
        learn.fit(1, 1e-3)
    assert learn.n_steps == 0


@pytest.mark.parametrize("options", [{"accumulate": 0}, {"clip": 0.0}, {"clip": -1.0},
                                     {"clip": math.nan}, {"mixup": -0.1}])  # fmt: skip
def test_impossible_options_are_refused(data: ImageData, options: dict[str, Any]) -> None:
    learn = learner(data)
    with pytest.raises(ValueError, match=next(iter(options))):
        learn.fit(1, 1e-3, **options)
    assert learn.n_steps == 0


def test_recorder_holds_numbers_only(data: ImageData) -> None:
    learn = learner(data)
    learn.fit(1, 1e-3)

    def leaves(value: Any) -> Iterator[Any]:
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, (list, tuple)):
            for each in value:
                yield from leaves(each)
        else:
            yield value

    assert {type(leaf) for leaf in leaves(vars(learn.recorder))} <= {int, float}


# -- Callbacks together --------------------------------------------------------------------------


def test_the_average_is_saved_and_comes_back(data: ImageData, tmp_path: Path) -> None:
    """Averages are judged and saved, the fit ends with the best of them; history is whole."""
    learn = learner(data, path=tmp_path)
    keeper = SaveModel("best")
    learn.fit(6, 3e-3, callbacks=[keeper, WeightAverage(0.9)])
    losses = learn.recorder.history["valid_loss"]
    assert len(losses) == 6
    assert keeper.saved[-1][0] == losses.idxmin()
    assert learn.validate()["valid_loss"] == losses.min()
    assert learn.n_epochs == 6


def test_average_of_an_interrupted_fit(data: ImageData) -> None:
    class Interrupt(Callback):
        def after_step(self, fit: Fit) -> None:
            if fit.step == 8:
                raise KeyboardInterrupt

    learn, average = learner(data), WeightAverage(0.5)
    with pytest.raises(KeyboardInterrupt):
        learn.fit(2, 1e-3, callbacks=[average, Interrupt()])
    assert average.swapped
    assert not learn.model.training


def test_average_is_that_of_its_definition(data: ImageData) -> None:
    weights: list[Tensor] = []

    class Watch(Callback):
        def after_step(self, fit: Fit) -> None:
            weights.append(last_layer(fit.learn).detach().clone())

    def last_layer(learn: Learner) -> Tensor:
        return next(p for p in learn.model.head.parameters() if p.ndim == 2)

    learn, callback = learner(data), WeightAverage(0.9)
    start = last_layer(learn).detach().clone()
    learn.fit(1, 1e-2, callbacks=[callback, Watch()])
    expected = start
    for step, weight in enumerate(weights, 1):
        decay = min(0.9, 1 - step ** (-2 / 3))
        expected = decay * expected + (1 - decay) * weight
    assert torch.allclose(last_layer(learn), expected, atol=1e-6)


@pytest.mark.parametrize("make", [EarlyStopping, SaveModel])
def test_a_score_that_does_not_exist(
    data: ImageData, tmp_path: Path, make: Callable[..., Callback]
) -> None:
    learn = learner(data, path=tmp_path)
    with pytest.raises(KeyError, match=r"no score 'f1'.*'accuracy'"):
        learn.fit(1, 1e-3, callbacks=[make(monitor="f1")])


def test_early_stopping_watches_accuracy_upwards(data: ImageData) -> None:
    learn = vision_learner(data, show_progress=False)
    learn.fit(10, 1e-30, callbacks=[EarlyStopping("accuracy", patience=2)])  # Nothing moves
    assert len(learn.recorder.rows) == 3


def test_csv_log_is_the_history(data: ImageData, tmp_path: Path) -> None:
    learn = learner(data)
    learn.fit(2, 1e-3, callbacks=[CSVLogger(tmp_path / "deep" / "history.csv")])
    rows = (tmp_path / "deep" / "history.csv").read_text().splitlines()
    assert rows[0].split(",") == list(learn.recorder.history.columns)
    assert [float(row.split(",")[2]) for row in rows[1:]] == list(
        learn.recorder.history["valid_loss"]
    )


# -- Pieces of a batch ---------------------------------------------------------------------------


def test_a_batch_in_pieces_has_the_same_gradient(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a body that learns, statistics kept: twenty at once, or seven, seven and six."""
    norms, moved = [], []
    for size in (100, 7):
        monkeypatch.setattr("petnb.learner.MICRO_BATCH", size)
        learn = vision_learner(data, show_progress=False, precision="float32", optimizer="sgd")
        learn.fit(1, 1e-2)
        learn.unfreeze()
        learn.fit(1, 1e-4)
        norms.append(learn.recorder.norms)
        moved.append(states(learn))
    assert np.allclose(norms[0], norms[1], rtol=1e-3)
    for one, other in zip(*moved, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, MICRO_BATCH),
        ({"loss_func": LabelSmoothing()}, MICRO_BATCH),
        ({"loss_func": LabelSmoothing(weight=torch.ones(10))}, 100),
        ({"loss_func": lambda logits, targets: logits.std()}, 100),
        ({"train_bn": True}, 100),
        ({"head": "fastai"}, 100),
    ],
)
def test_what_ties_images_together_stays_together(
    data: ImageData, options: dict[str, Any], expected: int
) -> None:
    learn = vision_learner(data, show_progress=False, **options)
    learn.unfreeze()
    learn.model.train()
    assert pieces(learn, 100) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"head": "fastai"},
        {"head": "fastai", "freeze_to": 1},
        {"loss_func": LabelSmoothing(weight=torch.arange(1.0, 11.0))},
        {"mixup": 0.4, "head": "fastai"},
    ],
)
def test_a_body_in_pieces_has_the_gradient_of_the_whole_batch(
    data: ImageData, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = dict(options)
    level, mixup = options.pop("freeze_to", 0), options.pop("mixup", 0.0)
    seen: list[int] = []
    features = LearningModel.features

    def watched(self: LearningModel, images: Tensor) -> Tensor:
        seen.append(len(images))
        return features(self, images)

    monkeypatch.setattr(LearningModel, "features", watched)
    found = []
    for most in (3, 1000):
        monkeypatch.setattr("petnb.learner.MICRO_BATCH", most)
        learn = learner(data, train_bn=False, precision="float32", optimizer="sgd", **options)
        learn.freeze_to(level)
        seen.clear()
        learn.fit(1, 1e-12, mixup=mixup)  # So small that no step changes the next one's gradient
        assert (max(seen) <= 3) == (most == 3)
        norms = [value for name, value in learn.model.state_dict().items() if "running" in name]
        found.append((learn.recorder.losses, learn.recorder.norms, norms))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-3)
    for one, other in zip(found[0][2], found[1][2], strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5)
