"""Same name, same number: values obtained by running fastai, replayed on petnb."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from fastai_facts import FACTS, FOLDER

from petnb.callbacks import EarlyStopping, SaveModel
from petnb.data import ImageData
from petnb.inference import blend
from petnb.interpretation import Interpretation, from_logits
from petnb.learner import Fit, Learner, gather, smooth, vision_learner
from petnb.losses import (
    FocalLoss,
    LabelSmoothing,
    TopAccuracy,
    accuracy,
    error_rate,
    soft_targets,
)
from petnb.lr_finder import diverged, exponential, half_fall, lr_suggest
from petnb.model import fastai_head
from petnb.optimizers import create_optimizer, rates
from petnb.schedules import cosine, one_cycle
from petnb.transforms import Normalize


def inputs(name: str) -> Any:
    return FACTS[name]["inputs"]


def expected(name: str) -> Any:
    return FACTS[name]["expected"]


@pytest.mark.parametrize(
    ("name", "schedule"), [("sched.cos", cosine), ("sched.exp_lr", exponential)]
)
def test_schedules(name: str, schedule: Any) -> None:
    start, end = inputs(name)["start"], inputs(name)["end"]
    found = [schedule(start, end, position) for position in inputs(name)["pos"]]
    assert np.allclose(found, expected(name), rtol=1e-5, atol=1e-13)


def test_one_cycle() -> None:
    positions = inputs("sched.combined_cos.lr")["pos"]
    found = np.array([one_cycle(position, 1e-3) for position in positions])
    assert np.allclose(found[:, 0], expected("sched.combined_cos.lr"), rtol=1e-5, atol=1e-13)
    assert np.allclose(found[:, 1], expected("sched.combined_cos.mom"), rtol=1e-5)


def test_rates() -> None:
    found = {
        "float": rates(0.001, 3),
        "slice_stop": rates(slice(0.001), 3),
        "slice_none_003": rates(slice(0.003), 3),
        "slice_both": rates(slice(1e-6, 1e-4), 3),
        "list": rates([1e-5, 1e-4, 1e-3], 3),
    }
    assert found.keys() == expected("lr.set_hyper").keys()
    for name, values in found.items():
        assert np.allclose(values, expected("lr.set_hyper")[name], rtol=1e-9)
    assert np.allclose(rates(slice(1e-6, 1e-4), 3), expected("lr.even_mults.3"), rtol=1e-9)


@pytest.fixture
def five_batches() -> Learner:
    """100 training images in five batches, three groups, on a small body."""
    data = ImageData.drawn_pets(images_per_breed=12, pixels=128, size=32, batch_size=20, workers=0)
    assert len(data.train) == 5
    return vision_learner(data, "resnet10t", pretrained=False, show_progress=False)


@pytest.mark.parametrize(
    ("name", "n_epochs", "lr_max"),
    [
        ("fit.one_cycle.slice", 2, slice(1e-6, 1e-4)),
        ("fit.one_cycle.slice_stop", 4, slice(3e-3)),
    ],
)
def test_fit_one_cycle_records_fastai_rates(
    five_batches: Learner, name: str, n_epochs: int, lr_max: slice
) -> None:
    five_batches.fit_one_cycle(n_epochs, lr_max)
    recorder = five_batches.recorder
    assert np.allclose(recorder.lrs, expected(name)["lr"], rtol=1e-5, atol=1e-13)
    momenta = np.array(recorder.moms)
    assert np.allclose(momenta[:, 0], expected(name)["mom"], rtol=1e-5)
    assert (momenta == momenta[:, :1]).all()


def test_fine_tune_records_fastai_rates(five_batches: Learner) -> None:
    curves: list[list[float]] = []
    recorder = five_batches.recorder
    forget = recorder.forget_curves

    def keep_and_forget() -> None:
        curves.extend(recorder.lrs)
        forget()

    recorder.forget_curves = keep_and_forget  # type: ignore[method-assign]
    five_batches.fine_tune(2)
    keep_and_forget()
    assert np.allclose(curves, expected("fit.fine_tune")["lr"], rtol=1e-5, atol=1e-13)


def test_optimiser_excludes_biases_and_norms_from_decay() -> None:
    layers = {"a": torch.nn.Linear(3, 4), "bn": torch.nn.BatchNorm1d(4), "b": torch.nn.Linear(4, 2)}
    names = {
        id(parameter): f"{layer}.{name}"
        for layer, module in layers.items()
        for name, parameter in module.named_parameters()
    }
    groups = [list(module.parameters()) for module in layers.values()]
    optimizer = create_optimizer(groups)
    undecayed = {
        names[id(parameter)]
        for group in optimizer.param_groups
        if not group["weight_decay"]
        for parameter in group["params"]
    }
    assert undecayed == set(expected("opt.no_wd_params")["no_wd"]) - {"c.bias"}


def test_finder_rates_and_stop_rule() -> None:
    lrs = [exponential(1e-7, 10, step / 100) for step in range(100)]
    assert np.allclose(lrs[:5], expected("lr_find.lrs")["first5"], rtol=1e-9)
    assert np.isclose(lrs[50], expected("lr_find.lrs")["i50"], rtol=1e-9)
    assert np.isclose(lrs[-1], expected("lr_find.lrs")["last"], rtol=1e-9)
    smoothed = smooth(inputs("lr_find.stop_rule")["raw_losses"], 0.98)
    steps = next(step for step in range(1, 101) if diverged(smoothed[:step]))
    assert steps == expected("lr_find.stop_rule")["iterations"]
    assert np.isclose(smoothed[steps - 1], expected("lr_find.stop_rule")["last_smooth"], rtol=1e-4)


def test_valley() -> None:
    lrs = [exponential(1e-7, 10, step / 100) for step in range(90)]
    found = lr_suggest("valley", lrs, [float(loss) for loss in range(90, 0, -1)])
    assert np.isclose(found, expected("lr_find.valley.strictly_down")["lr"], rtol=1e-5)


def test_half_of_the_fall_is_steadier_than_valley() -> None:
    curve = json.loads((FOLDER / "finder_curve.json").read_text())
    lrs, losses = np.array(curve["lrs"]), np.array(curve["losses"])
    medians, spreads, valley_spreads = [], [], []
    for noise in (0.0, 0.04, 0.15):
        rng = np.random.default_rng(0)
        noisy = [losses + rng.normal(0, noise, len(losses)) for _ in range(200)]
        found = [half_fall(lrs, draw)[0] for draw in noisy]
        assert None not in found
        middles = np.log10([each[1] for each in found if each])
        valleys = np.log10([lr_suggest("valley", lrs, draw) for draw in noisy])
        medians.append(np.median(middles))
        spreads.append(middles.std())
        valley_spreads.append(valleys.std())
    assert max(medians) - min(medians) < 0.5
    assert spreads[1] < valley_spreads[1]
    assert spreads[2] < valley_spreads[2]


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.5])
def test_no_usable_rate_on_a_flat_curve(noise: float) -> None:
    lrs = np.geomspace(1e-7, 10, 90)
    rng = np.random.default_rng(0)
    answers = [half_fall(lrs, 3.6 + rng.normal(0, noise, 90))[0] for _ in range(100)]
    assert answers.count(None) >= 99


@pytest.mark.parametrize(
    ("name", "concat_pool"), [("head.default_512_37", True), ("head.no_concat", False)]
)
def test_head(name: str, concat_pool: bool) -> None:
    parameters = list(fastai_head(512, 37, concat_pool=concat_pool).parameters())
    assert sum(p.numel() for p in parameters) == expected(name)["n_params"]
    assert len(parameters) == expected(name)["n_tensors"]


def test_metrics() -> None:
    logits = torch.tensor(inputs("metric.values")["logits"])
    targets = torch.tensor(inputs("metric.values")["targets"])
    assert np.isclose(accuracy(logits, targets), expected("metric.values")["accuracy"])
    assert np.isclose(error_rate(logits, targets), expected("metric.values")["error_rate"])
    assert np.isclose(TopAccuracy(2)(logits, targets), expected("metric.values")["top_2"])
    assert np.isclose(TopAccuracy(3)(logits, targets), expected("metric.values")["top_3"])


def test_losses() -> None:
    logits = torch.tensor(inputs("loss.values")["logits"])
    targets = torch.tensor(inputs("loss.values")["targets"])
    weight = torch.tensor(inputs("loss.values")["weight"], dtype=torch.float32)
    losses: dict[str, Any] = {
        "cross_entropy": torch.nn.functional.cross_entropy,
        **{f"label_smoothing_eps{eps}": LabelSmoothing(eps) for eps in (0.0, 0.1, 0.3)},
        "label_smoothing_none": LabelSmoothing(0.1, reduction="none"),
        "label_smoothing_sum": LabelSmoothing(0.1, reduction="sum"),
        **{f"focal_gamma{gamma}": FocalLoss(gamma) for gamma in (0.0, 1.0, 2.0)},
        "ce_weighted": LabelSmoothing(0.0, weight),
        "focal2_weighted": FocalLoss(2.0, weight),
        "label_smoothing_weighted": LabelSmoothing(0.1, weight),
    }
    assert losses.keys() == expected("loss.values").keys()
    for name, loss in losses.items():
        for given in (targets, soft_targets(targets, 4)):
            found = loss(logits, given)
            assert np.allclose(found, expected("loss.values")[name], rtol=1e-5), name


def test_mixed_loss() -> None:
    given = inputs("cb.mixup_loss")
    logits, share = torch.tensor(given["logits"]), torch.tensor(given["lam"])[:, None]
    first, second = (soft_targets(torch.tensor(given[name]), 4) for name in ("y", "y1"))
    found = torch.nn.functional.cross_entropy(logits, share * first + (1 - share) * second)
    assert np.isclose(found, expected("cb.mixup_loss"), rtol=1e-5)


def epochs_told(callback: EarlyStopping | SaveModel, losses: list[float], learn: Any) -> int:
    """Tell a callback these validation losses, as a fit would, until it stops the fit."""
    fit = Fit(learn, len(losses), 1, None, [], float, float)  # type: ignore[arg-type]
    callback.before_fit(fit)
    for loss in losses:
        fit.epoch += 1
        fit.scores = {"valid_loss": loss}
        callback.after_epoch(fit)
        if fit.stop:
            break
    callback.after_fit(fit)
    return fit.epoch


def test_early_stopping() -> None:
    losses = inputs("cb.early_stopping")["valid_loss"]
    callbacks = {
        "patience_1": EarlyStopping(patience=1),
        "patience_2": EarlyStopping(patience=2),
        "patience_3": EarlyStopping(patience=3),
        "patience_2_min_delta_.02": EarlyStopping(patience=2, min_delta=0.02),
        "patience_3_min_delta_.02": EarlyStopping(patience=3, min_delta=0.02),
    }
    found = {name: epochs_told(callback, losses, None) for name, callback in callbacks.items()}
    assert found == expected("cb.early_stopping")


def test_save_model(five_batches: Learner, tmp_path: Path) -> None:
    five_batches.path = tmp_path
    losses = inputs("cb.save_model")["valid_loss"]
    callbacks = {
        "default": SaveModel(),
        "min_delta_.02": SaveModel(min_delta=0.02),
        "every_epoch": SaveModel(every_epoch=1),
        "every_3": SaveModel(every_epoch=3),
        "at_end": SaveModel(at_end=True),
    }
    assert callbacks.keys() == expected("cb.save_model").keys()
    for name, callback in callbacks.items():
        epochs_told(callback, losses, five_batches)
        assert [list(save) for save in callback.saved] == expected("cb.save_model")[name]


@pytest.mark.parametrize(("accumulate", "n_steps"), [(8, 5), (12, 4), (16, 3), (32, 2)])
def test_accumulation(accumulate: int, n_steps: int) -> None:
    """As fastai counts, but what is left at the end of an epoch is a step as well."""
    given = inputs("cb.grad_accum_steps")
    batches = [[0] * given["bs"]] * given["n_batches"]
    left_over = given["bs"] * given["n_batches"] % accumulate > 0
    assert len(list(gather(batches, accumulate, len))) == n_steps
    assert expected("cb.grad_accum_steps")[f"n_acc_{accumulate}"] == n_steps - left_over


def interpretation(name: str) -> Interpretation:
    vocab, labels = inputs(name)["vocab"], inputs(name)["labels"]
    items = pd.DataFrame({"path": labels, "label": labels, "split": "valid"})
    targets = torch.tensor([vocab.index(label) for label in labels])
    logits = torch.tensor(inputs(name)["logits"], dtype=torch.float32)
    return from_logits(logits, targets, items, vocab)


def test_losses_and_their_order() -> None:
    interp = interpretation("interp.losses")
    assert np.allclose(interp.losses, expected("interp.losses")["losses"], rtol=1e-5)
    losses, order = expected("interp.losses")["top_all"]
    assert interp.top_losses().index.tolist() == order
    assert np.allclose(interp.top_losses()["loss"], losses, rtol=1e-5)
    smallest, order = expected("interp.losses")["smallest3"]
    assert interp.top_losses(3, largest=False).index.tolist() == order
    assert np.allclose(interp.top_losses(3, largest=False)["loss"], smallest, rtol=1e-5)


def test_confusion_matrix() -> None:
    interp = interpretation("interp.confusion_matrix")
    assert interp.confusion_matrix().tolist() == expected("interp.confusion_matrix")


def test_most_confused_gives_the_list_of_the_article() -> None:
    name = "interp.seed_most_confused"
    vocab = inputs(name)["vocab"]
    pairs = [(label, label, 1) for label in vocab] + inputs(name)["pairs_actual_pred_count"]
    answers = [(actual, predicted) for actual, predicted, n in pairs for _ in range(n)]
    targets = torch.tensor([vocab.index(actual) for actual, _ in answers])
    places = torch.tensor([vocab.index(predicted) for _, predicted in answers])
    logits = torch.nn.functional.one_hot(places, len(vocab)).float()
    items = pd.DataFrame({"path": "", "label": [actual for actual, _ in answers], "split": "valid"})
    found = from_logits(logits, targets, items, vocab).most_confused(min_val=2)
    assert [list(row) for row in found] == expected(name)["most_confused_min_val_2"]


def test_normalisation() -> None:
    normalize = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    pixel = torch.tensor(inputs("tfm.normalize")["pixel"]).view(1, 3, 1, 1) * 255
    encoded = normalize(pixel).flatten()
    assert np.allclose(encoded, expected("tfm.normalize")["encoded"], rtol=1e-5, atol=1e-6)


def test_blend_of_views() -> None:
    given = inputs("tta.beta")
    found = blend(torch.tensor(given["aug_mean"]), torch.tensor(given["plain"]), given["beta"])
    assert np.allclose(found, expected("tta.beta"), rtol=1e-5)
