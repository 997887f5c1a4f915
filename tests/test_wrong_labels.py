"""Which labels are wrong: our counts beside cleanlab's, and classes with few images."""

import sys

import numpy as np
import pandas as pd
import pytest

from petnb.data import ImageData
from petnb.interpretation import Interpretation
from petnb.wrong_labels import (
    class_thresholds,
    closest_across_split,
    confident_classes,
    confident_joint,
    fold_probabilities,
    label_issues,
    label_quality,
    out_of_fold,
    overlapping_classes,
)


def noisy(n: int = 600, classes: int = 6, seed: int = 0) -> tuple[Interpretation, np.ndarray]:
    """A model that is mostly right, one label in ten that is not; which ones are wrong."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(classes, size=n)
    logits = rng.normal(0, 1, (n, classes))
    logits[np.arange(n), truth] += rng.choice([1.5, 4], size=n)
    probs = np.exp(logits)
    probs = (probs / probs.sum(axis=1, keepdims=True)).astype(np.float32)
    wrong = rng.random(n) < 0.1
    labels = np.where(wrong, (truth + rng.integers(1, classes, n)) % classes, truth)
    vocab = [f"class {number}" for number in range(classes)]
    sides = np.where(np.arange(n) % 5, "train", "valid")
    paths = [f"{number}.jpg" for number in range(n)]
    items = pd.DataFrame({"path": paths, "label": np.array(vocab)[labels], "split": sides})
    losses = -np.log(probs[np.arange(n), labels])
    return Interpretation(probs, labels, losses, items, vocab, "out of fold"), wrong


# -- Beside cleanlab -----------------------------------------------------------------------------


@pytest.mark.parametrize("adjust", [False, True])
def test_scores_are_cleanlabs(adjust: bool) -> None:
    rank = pytest.importorskip("cleanlab.rank")
    interp, _ = noisy()
    theirs = rank.get_label_quality_scores(
        interp.targets, interp.probs, method="self_confidence", adjust_pred_probs=adjust
    )
    assert np.allclose(label_quality(interp.probs, interp.targets, adjust), theirs, atol=1e-5)


def test_counts_are_cleanlabs() -> None:
    count = pytest.importorskip("cleanlab.count")
    interp, _ = noisy()
    theirs = count.get_confident_thresholds(interp.targets, interp.probs)
    assert np.allclose(class_thresholds(interp.probs, interp.targets), theirs, atol=1e-5)
    # Where several thresholds are reached cleanlab takes the largest probability of all classes,
    # the paper (and petnb) that of the classes that are reached
    confident = confident_classes(interp.probs, interp.targets)
    several = (interp.probs >= theirs - 1e-6).sum(axis=1) > 1
    same = ~several | (confident == interp.predictions)
    assert same.mean() > 0.9
    joint = count.compute_confident_joint(interp.targets[same], interp.probs[same], calibrate=False)
    part = interp.part(same)
    again = confident_joint(part.probs, part.targets)
    assert again.sum() == joint.sum()
    assert abs(again - joint).sum() <= 0.02 * joint.sum()


def test_cleanlabs_filters_by_name() -> None:
    module = pytest.importorskip("cleanlab.filter")
    interp, _ = noisy()
    for name in ("prune_by_noise_rate", "prune_by_class", "both"):
        mask = module.find_label_issues(interp.targets, interp.probs, filter_by=name, n_jobs=1)
        expected = np.flatnonzero(mask & (interp.predictions != interp.targets))
        assert sorted(label_issues(interp, name).index) == expected.tolist()


def test_without_cleanlab_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    interp, _ = noisy(60)
    label_issues(interp)
    with pytest.raises(ImportError, match=r'pip install "petnb\[clean\]"'):
        label_issues(interp, "both")


# -- The list ------------------------------------------------------------------------------------


def test_the_list_finds_most_and_begins_with_the_worst() -> None:
    interp, wrong = noisy(3000)
    issues = label_issues(interp)
    assert wrong[issues.index].mean() > 0.8
    assert wrong[issues.index].sum() > 0.6 * wrong.sum()  # Half of the images are hard to tell
    assert issues["quality"].is_monotonic_increasing
    assert (issues["label"] != issues["suggestion"]).all()
    assert (issues["label"] == interp.items["label"][issues.index]).all()
    assert wrong[issues.index[:50]].mean() > 0.9


def test_a_class_without_images_and_one_without_confidence() -> None:
    probs = np.array([[0.9, 0.1, 0], [0.8, 0.2, 0], [0.3, 0.7, 0], [0.9, 0.1, 0]], np.float32)
    targets = np.array([0, 0, 1, 1])
    assert np.isnan(class_thresholds(probs, targets)[2])
    assert np.allclose(class_thresholds(probs, targets)[:2], [0.85, 0.4])
    assert confident_classes(probs, targets).tolist() == [0, -1, 1, 0]
    assert confident_joint(probs, targets).tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert np.isfinite(label_quality(probs, targets, adjust=True)).all()
    table = overlapping_classes(probs, targets, ["a", "b", "c"])
    assert table.to_numpy().tolist() == [["a", "b", 1, 0.25]]


# -- Folds ---------------------------------------------------------------------------------------


def test_no_image_is_judged_by_a_head_that_saw_its_label() -> None:
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(90, 8)), np.arange(90) % 3
    folds = np.arange(90) % 5
    before = fold_probabilities(features, targets, folds, 3)
    changed = targets.copy()
    changed[folds == 2] = rng.permutation(changed[folds == 2])
    after = fold_probabilities(features, changed, folds, 3)
    assert np.array_equal(before[folds == 2], after[folds == 2])
    assert not np.allclose(before[folds == 1], after[folds == 1])
    assert np.allclose(before.sum(axis=1), 1, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The number of unique classes")  # scikit-learn, of tiny folds
def test_classes_with_one_image_are_left_out() -> None:
    pets = ImageData.drawn_pets(images_per_breed=4, pixels=64, size=64)
    paths, labels = pets.items["path"].tolist(), pets.items["label"].tolist()
    labels[0] = "a rare one"
    with pytest.warns(UserWarning, match="a rare one"):
        data = ImageData.from_lists(paths, labels, size=64, valid="random", seed=1)
    judged = out_of_fold(data, n_folds=2)
    assert len(judged.items) == len(paths) - 1
    assert "a rare one" not in set(judged.items["label"])
    assert judged.root == data.root
    assert judged.features is not None
    assert judged.features.shape == (39, 1280)
    assert set(judged.items["split"]) == {"train", "valid"}
    by_path = dict(zip(data.items["path"], data.items["label"], strict=True))
    assert judged.items["label"].tolist() == judged.items["path"].map(by_path).tolist()


# -- Both sides ----------------------------------------------------------------------------------


def test_the_closest_is_found_in_blocks_of_any_size() -> None:
    interp, _ = noisy(100)
    interp.features = np.random.default_rng(0).normal(size=(100, 16)).astype(np.float32)
    interp.features[5] = 3 * interp.features[11]  # Row 5 is held out, row 11 is not
    one, other = closest_across_split(interp), closest_across_split(interp, rows=3)
    assert one[["path", "twin"]].equals(other[["path", "twin"]])
    assert (one["path"][0], one["twin"][0]) == ("5.jpg", "11.jpg")
    assert one.loc[0, "similarity"] == pytest.approx(1, abs=1e-5)
    assert len(one) == 20
    assert not set(one["twin"]) & set(one["path"])


def test_what_is_missing_for_the_closest_is_said() -> None:
    interp, _ = noisy(20)
    with pytest.raises(ValueError, match="features=True"):
        closest_across_split(interp)
    interp.features = np.ones((20, 2), np.float32)
    with pytest.raises(ValueError, match="16 to learn from, 0 held out"):
        closest_across_split(interp.part((interp.items["split"] == "train").to_numpy()))
