"""Temperature and threshold of a model file: chosen carefully, and judged by others."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from petnb.calibration import calibration_error, rescaled
from petnb.certainty import (
    FOLDS,
    LEAST,
    MIN_IMAGES,
    answer_threshold,
    careful_temperature,
    cross_fitted,
    dealt,
    fit_certainty,
    judge,
)
from petnb.interpretation import Interpretation


def interpretation(probs: np.ndarray, targets: np.ndarray) -> Interpretation:
    """What a model might have said."""
    probs = probs.astype(np.float32)
    vocab = [f"class {number}" for number in range(probs.shape[1])]
    losses = -np.log(np.maximum(probs[np.arange(len(targets)), targets], np.float32(1e-30)))
    items = pd.DataFrame({"path": [f"{row}.jpg" for row in range(len(targets))]})
    items["label"], items["split"] = [vocab[target] for target in targets], "valid"
    return Interpretation(probs, targets, losses, items, vocab)


def fair(n: int, seed: int = 0, spread: float = 3.0, boast: float = 1.0) -> Interpretation:
    """Answers drawn from probabilities, which are then told `boast` times as sure."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, (n, 4))
    shares = np.exp(log_softmax(logits, axis=1))
    targets = (rng.random((n, 1)) > shares.cumsum(axis=1)[:, :-1]).sum(axis=1)
    return interpretation(np.exp(log_softmax(logits * boast, axis=1)), targets)


# -- The temperature -----------------------------------------------------------------------------


@pytest.mark.parametrize("boast", [0.5, 2.0])
def test_a_boaster_and_a_modest_one_are_set_right(boast: float) -> None:
    certainty = fit_certainty(fair(2000, boast=boast))
    assert certainty.temperature == pytest.approx(boast, rel=0.1)
    assert certainty.judged is not None
    loss = certainty.judged["loss"]
    assert loss["in the file"] < loss["as trained"]


@pytest.mark.parametrize("n", [MIN_IMAGES, 100, 500])
def test_right_answers_prove_no_more_than_their_number(n: int) -> None:
    always = interpretation(np.tile([0.7, 0.2, 0.1], (n, 1)), np.zeros(n, dtype=int))
    told = rescaled(always, careful_temperature(always.probs, always.targets)).probs.max()
    assert (n - 1) / n < told <= (n + 1) / (n + 2) + 1e-3


def test_what_does_not_help_others_is_left_out() -> None:
    """Of these seeds several let a temperature look useful where it was fitted, by luck."""
    chosen = [fit_certainty(fair(60, seed)) for seed in range(20)]
    kept = [one for one in chosen if one.temperature == 1]
    assert len(kept) > 5
    assert all("did not lower the loss" in one.told for one in kept)
    for one in chosen:
        assert one.judged is not None
        assert one.judged["loss"]["in the file"] <= one.judged["loss"]["as trained"] + 1e-6


def test_too_few_images_choose_nothing() -> None:
    few = fit_certainty(fair(MIN_IMAGES - 1, boast=3))
    assert (few.temperature, few.threshold, few.judged) == (1, 0, None)
    assert str(few) == (
        "No temperature was fitted and no answer is withheld: 49 images are held out, and 50 are "
        "needed to choose."
    )
    assert fit_certainty(fair(MIN_IMAGES - 1), temperature=2.0).temperature == 2.0


def test_a_given_temperature_is_kept_and_said() -> None:
    boaster = fair(400, boast=2)
    certainty = fit_certainty(boaster, wanted=0, temperature=1.0)
    assert (certainty.temperature, certainty.threshold) == (1.0, 0.0)
    assert certainty.told == "A temperature of 1 was given, not fitted. No answer is withheld."
    assert certainty.judged is not None
    assert np.isclose(*certainty.judged["calibration error"])


# -- The threshold -------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [0.75, 0.78, 0.8])
def test_the_threshold_is_the_lowest_that_grants_the_wish(wanted: float) -> None:
    interp = fair(600, spread=2)
    threshold = answer_threshold(interp, wanted)
    confidence, right = interp.probs.max(axis=1), interp.predictions == interp.targets
    assert 0 < threshold < 1
    assert right[confidence >= threshold].mean() >= wanted
    for lower in confidence[confidence < threshold]:
        assert right[confidence >= lower].mean() < wanted
    assert threshold not in confidence


def test_a_wish_that_is_granted_anyway_or_never_sets_no_threshold() -> None:
    interp = fair(600)
    assert answer_threshold(interp, 0) == 0
    assert answer_threshold(interp, interp.accuracy) == 0
    assert answer_threshold(interp, 0.9999) == 0
    assert answer_threshold(interp, 0.9999, least=0) > 0
    never = fit_certainty(replace(interp, targets=(interp.targets + 1) % 4))
    assert never.threshold == 0
    assert "fewer than half" in never.told


def test_equal_probabilities_are_answered_or_withheld_together() -> None:
    probs = np.repeat([[0.9, 0.1], [0.6, 0.4]], 50, axis=0)
    targets = np.repeat([0, 0, 1], [50, 10, 40])
    threshold = answer_threshold(interpretation(probs, targets), 0.95)
    assert 0.6 < threshold < 0.9


# -- Who judges ----------------------------------------------------------------------------------


@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(sum),
    n_folds=st.integers(2, 6),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_parts_have_the_same_mixture(counts: list[int], n_folds: int, seed: int) -> None:
    targets = np.random.default_rng(seed).permutation(np.repeat(range(len(counts)), counts))
    folds = dealt(targets, n_folds, seed)
    for label in [*range(len(counts)), None]:
        chosen = folds if label is None else folds[targets == label]
        sizes = np.bincount(chosen, minlength=n_folds)
        assert sizes.max() - sizes.min() <= 1


def test_nobody_marks_his_own_paper() -> None:
    """Other answers to a part's own images change nothing of what is said of this part."""
    interp = fair(300, boast=2)
    folds = dealt(interp.targets)
    before, thresholds = cross_fitted(interp, 0.8)
    for fold in range(FOLDS):
        these, swapped = folds == fold, interp.targets.copy()
        swapped[these] = np.random.default_rng(1).permutation(swapped[these])
        after, others = cross_fitted(replace(interp, targets=swapped), 0.8)
        if np.array_equal(dealt(swapped), folds):
            assert np.array_equal(after.probs[these], before.probs[these])
            assert np.array_equal(others[these], thresholds[these])
        assert not np.array_equal(after.probs[~these], before.probs[~these])


def test_the_promise_holds_on_new_images() -> None:
    """Over many models: what is judged by parts is what new images show; the fit flatters."""
    judged, flattered, shown = [], [], []
    for seed in range(30):
        certainty = fit_certainty(interp := fair(200, seed, boast=2), wanted=0.85)
        new = rescaled(fair(4000, 1000 + seed, boast=2), certainty.temperature)
        assert certainty.judged is not None
        judged.append(certainty.judged["right"]["in the file"])
        own = rescaled(interp, certainty.temperature)
        flattered.append(judge(own, certainty.threshold)["right"])
        shown.append(judge(new, certainty.threshold)["right"])
    assert abs(np.mean(judged) - np.mean(shown)) < 0.01
    assert np.mean(flattered) > np.mean(shown)


def test_the_sentence_says_what_the_table_says() -> None:
    interp = fair(500, boast=2)
    certainty = fit_certainty(interp, wanted=0.8)
    assert certainty.judged is not None
    before, after = certainty.judged.to_dict("records")
    assert before["calibration error"] == calibration_error(interp.probs, interp.targets)
    errors = [row["calibration error"] for row in (before, after)]
    assert f"from {errors[0]:.3f} to {errors[1]:.3f}" in certainty.told
    assert f"mean loss goes from {before['loss']:.3f} to {after['loss']:.3f}" in certainty.told
    assert f"From {certainty.threshold:.1%} on" in certainty.told
    assert f"{after['answered']:.0%} are answered, and {after['right']:.1%}" in certainty.told
    assert "500 held-out images" in certainty.told


# -- Anything ------------------------------------------------------------------------------------


@given(
    n=st.integers(MIN_IMAGES, 90),
    classes=st.integers(2, 5),
    seed=st.integers(0, 1000),
    sharp=st.sampled_from([0.0, 1.0, 200.0]),
    wanted=st.sampled_from([0.0, 0.5, 0.95]),
)
@settings(max_examples=40, deadline=None)
def test_whatever_a_model_says_the_numbers_are_numbers(
    n: int, classes: int, seed: int, sharp: float, wanted: float
) -> None:
    rng = np.random.default_rng(seed)
    probs = np.exp(log_softmax(rng.normal(0, sharp, (n, classes)), axis=1))
    certainty = fit_certainty(interpretation(probs, rng.integers(0, classes, n)), wanted)
    assert 0.04 < certainty.temperature < 21
    assert 0 <= certainty.threshold <= 1
    assert certainty.judged is not None
    assert certainty.judged[["loss", "answered"]].notna().all(axis=None)
    assert certainty.threshold == 0 or (probs.max(axis=1) > 0).mean() >= LEAST


@pytest.mark.parametrize(
    ("wish", "complaint"),
    [
        ({"wanted": 1.0}, "share of right answers is 1.0"),
        ({"wanted": -0.1}, "share of right answers is -0.1"),
        ({"wanted": float("nan")}, "share of right answers is nan"),
        ({"temperature": 0.0}, "temperature is 0.0; it is a number over 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
    ],
)
def test_senseless_wishes_are_refused(wish: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        fit_certainty(fair(60), **wish)
