"""Calibration at its edges: certain answers, few images, many images."""

import tracemalloc

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from petnb.calibration import (
    abstain_threshold,
    calibrate,
    calibration_error,
    coverage_curve,
    fit_temperature,
    halves,
    plot_coverage,
    plot_reliability,
    reliability,
    rescaled,
    scaled_logs,
)
from petnb.interpretation import Interpretation, from_logits


def answers(n: int, classes: int = 5, sharper: float = 1.0, seed: int = 0) -> Interpretation:
    """Answers drawn from a model's probabilities, whose scores are then multiplied."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 2, (n, classes)))
    chances = logits.softmax(1).cumsum(1).numpy()[:, :-1]
    targets = torch.from_numpy((rng.random((n, 1)) > chances).sum(axis=1))
    vocab = [f"class {number}" for number in range(classes)]
    labels = [vocab[target] for target in targets]
    paths = [f"{number}.jpg" for number in range(n)]
    items = pd.DataFrame({"path": paths, "label": labels, "split": "valid"})
    return from_logits(sharper * logits, targets, items, vocab)


@pytest.mark.parametrize("n_bins", [1, 7, 10, 15, 40])
def test_the_error_is_that_of_torchmetrics(n_bins: int) -> None:
    interp = answers(500, sharper=1.7)
    theirs = multiclass_calibration_error(
        torch.from_numpy(interp.probs), torch.from_numpy(interp.targets), 5, n_bins
    )
    ours = calibration_error(interp.probs, interp.targets, n_bins)
    assert ours == pytest.approx(float(theirs), abs=1e-6)


def test_borders_of_bins() -> None:
    probs = np.array([[0.5, 0.5], [0.25, 0.75], [0.0, 1.0], [0.49, 0.51]])
    table = reliability(probs, np.array([0, 1, 1, 0]), n_bins=4)
    assert table["images"].to_dict() == {1: 1, 2: 2, 3: 1}  # 0.5 and 0.75 close their bins
    assert table["high"].tolist() == [0.5, 0.75, 1]
    with pytest.raises(ValueError, match="n_bins is 0"):
        reliability(probs, np.array([0, 1, 1, 0]), n_bins=0)


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_the_temperature_undoes_a_factor(factor: float) -> None:
    interp = answers(20_000, sharper=factor)
    assert fit_temperature(interp.probs, interp.targets) == pytest.approx(factor, rel=0.05)


def test_certain_and_wrong_answers_stay_finite() -> None:
    probs = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    temperature = fit_temperature(probs, np.array([0, 1, 2, 1]))
    logs = scaled_logs(probs, temperature)
    assert np.isfinite(logs).all()
    assert logs.dtype == np.float32
    assert np.allclose(np.exp(logs).sum(axis=1), 1, atol=1e-5)
    assert temperature > 1
    with pytest.raises(ValueError, match="temperature is 0"):
        scaled_logs(probs, 0)


def test_scaling_changes_no_answer() -> None:
    interp = answers(2000, classes=30)
    for temperature in (0.1, 0.9, 10):
        other = rescaled(interp, temperature)
        changed = other.predictions != interp.predictions
        first, second = np.sort(interp.probs[changed], axis=1)[:, :-3:-1].T
        assert np.allclose(first, second, rtol=1e-5)  # Ties, as far as float32 can tell
        assert changed.sum() <= 2
        own = other.probs[np.arange(2000), other.targets]
        assert np.allclose(other.losses, -np.log(np.maximum(own, 1e-38)), atol=1e-3)


def test_the_second_half_is_not_fitted() -> None:
    interp = answers(1000, sharper=2)
    before = calibrate(interp)
    second = ~halves(interp.targets)
    interp.probs[second] = interp.probs[second][::-1]  # Nonsense
    after = calibrate(interp)
    assert after.temperature == before.temperature
    assert after.before.accuracy < before.before.accuracy - 0.2
    assert len(before.before.targets) + halves(interp.targets).sum() == 1000
    assert set(before.before.items["path"]) == set(interp.items["path"][second])
    with pytest.raises(ValueError, match="2 images or more"):
        calibrate(interp.part(np.arange(1)))


def test_halves_share_each_class() -> None:
    targets = np.repeat([0, 1, 2], [100, 11, 2])
    first = np.bincount(targets[halves(targets)])
    assert abs(first - np.array([50, 5.5, 1])).max() <= 1


def test_equal_confidences_are_answered_together() -> None:
    probs = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]])
    curve = coverage_curve(probs, np.array([0, 1, 0]))
    assert curve["threshold"].tolist() == [0.9, 0.6]
    assert curve["coverage"].tolist() == pytest.approx([2 / 3, 1])
    assert curve["accuracy"].tolist() == pytest.approx([1 / 2, 2 / 3])


def test_a_threshold_does_what_it_says() -> None:
    interp = answers(5000)
    choice = abstain_threshold(interp, 0.9)
    answered = interp.probs.max(axis=1) >= choice["threshold"]
    assert answered.mean() == pytest.approx(choice["coverage"])
    right = (interp.predictions == interp.targets)[answered].mean()
    assert right == pytest.approx(choice["accuracy"])
    assert right >= 0.9
    hopeless = answers(50)
    hopeless.probs = np.eye(5, dtype=np.float32)[(hopeless.targets + 1) % 5]
    with pytest.raises(ValueError, match=r"the best is 0\.0%"):
        abstain_threshold(hopeless, 0.5)


def test_a_hundred_thousand_images_stay_small_and_can_be_drawn() -> None:
    interp = answers(100_000, classes=50)
    tracemalloc.start()
    try:
        calibration_error(interp.probs, interp.targets)
        coverage_curve(interp.probs, interp.targets)
        plot_reliability(interp)
        plot_coverage(interp)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        plt.close("all")
    assert peak < 2 * interp.probs.nbytes
