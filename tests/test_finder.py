"""The learning-rate finder leaves no trace, whatever happens to it."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from petnb.data import ImageData
from petnb.learner import Batch, Fit, Learner, train_step, vision_learner


@pytest.fixture(scope="module")
def data() -> ImageData:
    """100 training images in five batches."""
    return ImageData.drawn_pets(images_per_breed=12, pixels=128, size=32, batch_size=20, workers=0)


def thawed(data: ImageData, **options: Any) -> Learner:
    """All that can change does: batch norms drift, dropout throws dice, everything trains."""
    return vision_learner(
        data, "resnet10t", pretrained=False, head="fastai", show_progress=False, **options
    )


def frozen(data: ImageData, **options: Any) -> Learner:
    """The usual first stage."""
    return vision_learner(data, show_progress=False, **options)


def bits(learn: Learner) -> list[Any]:
    """All that a finder might disturb, the caller's dice included."""
    recorder = {name: repr(value) for name, value in vars(learn.recorder).items()}
    return [
        [tensor.clone() for tensor in learn.model.state_dict().values()],
        [p.requires_grad for p in learn.model.parameters()],
        [p.grad is None for p in learn.model.parameters()],
        [module.training for module in learn.model.modules()],
        (learn.n_epochs, learn.n_steps, recorder),
        learn.data.train.batch_sampler.epoch,  # type: ignore[union-attr]
        learn.data.train.generator.get_state(),
        torch.get_rng_state(),
        random.getstate(),
        [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
    ]


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def test_equal_notices_a_difference(data: ImageData) -> None:
    learn = frozen(data)
    before = bits(learn)
    assert equal(before, bits(learn))
    torch.rand(1)
    assert not equal(before, bits(learn))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("make", [frozen, thawed])
def test_twenty_steps_with_and_without_a_finder_before(
    data: ImageData, make: Callable[..., Learner], workers: int
) -> None:
    both = [make(replace(data, workers=workers)) for _ in range(2)]
    before = bits(both[0])
    both[0].lr_find(n_steps=30)
    assert equal(before, bits(both[0]))
    for learn in both:
        learn.fit(4, 1e-3)
    assert len(both[0].recorder.losses) == 20
    assert both[0].recorder.losses == both[1].recorder.losses
    states = [learn.model.state_dict() for learn in both]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("make", [frozen, thawed])
def test_an_interrupted_finder_leaves_no_trace(
    data: ImageData, make: Callable[..., Learner], error: type[BaseException]
) -> None:
    learn = make(data)
    learn.fit(1, 1e-3)
    before, calls = bits(learn), iter(range(100))

    def fails(logits: Tensor, targets: Tensor) -> Tensor:
        if next(calls) == 7:
            raise error("in the middle")
        return nn.functional.cross_entropy(logits, targets)

    learn.loss_func = fails
    with pytest.raises(error, match="in the middle"):
        learn.lr_find()
    assert next(calls) == 8
    assert equal(before, bits(learn))


def test_no_file_is_written(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    learn = frozen(data, path=tmp_path / "models")
    learn.lr_find(n_steps=20)
    assert list(tmp_path.iterdir()) == []


def test_not_a_number_ends_it_without_a_rate(data: ImageData) -> None:
    learn = frozen(data, loss_func=lambda logits, targets: logits.sum() * torch.nan)
    before = bits(learn)
    found = learn.lr_find()
    assert len(found.lrs) == 1
    assert found.lr is None
    assert "only 0 finite losses" in found.reason
    assert found.suggestions == {}
    assert "no usable rate" in repr(found)
    found.plot()
    assert equal(before, bits(learn))


def test_nothing_to_train_is_said(data: ImageData) -> None:
    learn = frozen(data)
    for parameter in learn.model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing trains"):
        learn.lr_find()


def test_ratios_and_accumulation_are_those_of_the_fit(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn, seen, rates = thawed(data), [], []

    def watch(run: Fit, batches: list[Batch]) -> None:
        train_step(run, batches)
        seen.append([len(targets) for _, targets in batches])
        rates.append([lr for lr, _ in run.settings])

    monkeypatch.setattr("petnb.lr_finder.train_step", watch)
    found = learn.lr_find(ratios=slice(1e-6, 1e-4), accumulate=40, n_steps=6)
    assert seen == [[20, 20]] * 6
    assert np.allclose(np.array(rates) / np.array(rates)[:, -1:], [[0.01, 0.1, 1.0]] * 6)
    assert found.lrs == [row[-1] for row in rates]
    assert found.lrs[0] == pytest.approx(1e-7)
