"""Two models compared: only on the same images, whatever their order."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binom

from petnb.comparison import compare_models, gain_interval, mcnemar
from petnb.interpretation import Interpretation, from_logits


def test_the_exact_test_against_the_sum_of_a_binomial() -> None:
    for mended, broken in [(0, 0), (1, 0), (7, 2), (2, 7), (30, 30), (400, 350), (5000, 4000)]:
        fewer, both = min(mended, broken), mended + broken
        expected = min(1.0, 2 * binom.cdf(fewer, both, 0.5)) if both else 1.0
        assert mcnemar(mended, broken) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_the_test_errs_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    mended = rng.binomial(40, 0.5, size=2000)  # Neither model is better
    share = np.mean([mcnemar(int(k), int(40 - k)) < 0.05 for k in mended])
    assert 0.02 < share < 0.05  # An exact test of counts errs a little less


def test_the_interval_holds_the_true_gain_nineteen_times_in_twenty() -> None:
    rng = np.random.default_rng(1)
    draws = rng.multinomial(500, [0.12, 0.06, 0.82], size=2000)
    ends = [gain_interval(int(b), int(c), 500)[1:] for b, c, _ in draws]
    inside = np.mean([low <= 0.06 <= high for low, high in ends])
    assert 0.93 < inside < 0.97


def answers(seed: int) -> Interpretation:
    """What a model that is often right says about a hundred images."""
    targets = torch.arange(100) % 5
    logits = torch.randn(100, 5, generator=torch.Generator().manual_seed(seed))
    logits[range(100), targets] += 1
    vocab = [f"class {number}" for number in range(5)]
    labels = [vocab[target] for target in targets]
    paths = [f"{number}.jpg" for number in range(100)]
    items = pd.DataFrame({"path": paths, "label": labels, "split": "valid"})
    return from_logits(logits, targets, items, vocab)


def pair() -> tuple[Interpretation, Interpretation]:
    """Two models' answers about the same hundred images."""
    return answers(seed=0), answers(seed=1)


def test_a_model_beside_itself() -> None:
    first, _ = pair()
    comparison = compare_models(first, first)
    assert (comparison.mended, comparison.broken, comparison.p_value) == (0, 0, 1)
    assert comparison.gain() == (0, 0, 0)
    assert comparison.flipped().empty


def test_turning_a_comparison_round() -> None:
    first, second = pair()
    there, back = compare_models(first, second), compare_models(second, first)
    assert (there.mended, there.broken) == (back.broken, back.mended)
    assert there.p_value == back.p_value
    assert there.gain()[0] == -back.gain()[0] == pytest.approx(second.accuracy - first.accuracy)
    counts = there.flipped()["verdict"].value_counts()
    assert (counts["mended"], counts["broken"]) == (there.mended, there.broken)
    assert there.per_class()["images"].sum() == 100


def test_rows_in_any_order_are_matched_by_path() -> None:
    first, second = pair()
    order = np.random.default_rng(2).permutation(100)
    shuffled = compare_models(first, second.part(order))
    assert np.array_equal(shuffled.second.probs, second.probs)
    assert repr(shuffled) == repr(compare_models(first, second))


def test_what_cannot_be_compared_is_refused() -> None:
    first, second = pair()
    with pytest.raises(ValueError, match="5 only in the first, 0 in the second"):
        compare_models(first, second.part(np.arange(95)))
    with pytest.raises(ValueError, match="0 only in the first, 5 in the second"):
        compare_models(first.part(np.arange(95)), second)
    with pytest.raises(ValueError, match=r"other classes: \['class 4', 'new'\]"):
        compare_models(first, replace(second, vocab=[*second.vocab[:4], "new"]))
    with pytest.raises(ValueError, match="in another order"):
        compare_models(first, replace(second, vocab=second.vocab[::-1]))
    relabelled = replace(second, targets=(second.targets + (np.arange(100) == 7)) % 5)
    with pytest.raises(ValueError, match=r"1 images have other labels in the second: 7\.jpg"):
        compare_models(first, relabelled)
    with pytest.raises(ValueError, match="twice"):
        compare_models(first, second.part(np.r_[0, np.arange(99)]))
