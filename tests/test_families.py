"""Groups, freezing and heads on one small model of each of 57 families of timm, not pretrained.

Ten families, one for each layout and kind of matcher, always run. PETNB_ALL_FAMILIES=1 runs all of
them (.github/workflows/long.yml does). What they are like was found with timm 1.0.31: see
tests/facts/timm_families.csv, where `groups` count timm's own classifier in petnb's head's place.
"""

import csv
import inspect
import math
import os
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]
from torch import Tensor, nn

from petnb.model import Classifier, HeadName, create_classifier, freeze_to, summary
from petnb.optimizers import layer_decay

with (Path(__file__).parent / "facts" / "timm_families.csv").open(newline="") as file:
    FACTS = {row["backbone"]: row for row in csv.DictReader(file)}

ALWAYS = {
    "resnet18",  # channels first, batch norms
    "convnext_atto",  # a last normalisation that the matcher does not name
    "tf_efficientnet_lite0",  # petnb's default
    "vit_tiny_patch16_224",  # tokens, one of which is no place
    "swin_tiny_patch4_window7_224",  # channels last
    "poolformer_s12",  # no matcher
    "crossvit_tiny_240",  # a list of maps
    "levit_128s",  # tokens, batch norms, two classifiers
    "mambaout_femto",  # channels last, a hidden layer before the classifier
    "hgnetv2_b0",  # a convolution before the classifier
}
WITHOUT_MATCHER = {"poolformer_s12"}
LISTS = {"crossvit_tiny_240"}
SIDE_BY_SIDE = {"cait_xxs24_224"}  # timm lays its blocks for the class token beside the last blocks
SMALLEST = {"inception_v3": 96}  # pixels, where 64 leave nothing for the last convolution
N_CLASSES = 3

only_scheduled = pytest.mark.skipif(
    os.environ.get("PETNB_ALL_FAMILIES") != "1",
    reason="one of 47 families that only the scheduled run builds; PETNB_ALL_FAMILIES=1 runs them",
)
CASES = [pytest.param(name, marks=[] if name in ALWAYS else [only_scheduled]) for name in FACTS]
each_family = pytest.mark.parametrize("family", CASES)


@pytest.fixture(autouse=True)
def _reproducible() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def classifier(family: str, head: HeadName = "linear", n_groups: int | None = 3) -> Classifier:
    """A model as one that was pretrained: its running statistics stay."""
    return create_classifier(
        family, N_CLASSES, head, pretrained=False, train_bn=False, n_groups=n_groups
    )


def two_images(model: Classifier) -> Tensor:
    config: dict[str, Any] = model.body.pretrained_cfg
    smallest = SMALLEST.get(model.architecture, 64)
    pixels = config["input_size"][1] if config.get("fixed_input_size") else smallest
    return torch.randn(2, 3, pixels, pixels)


def give_the_head_an_opinion(model: Classifier) -> None:
    """From zero weights nothing would reach the body."""
    *_, last = model.head.children()
    assert isinstance(last, nn.Linear)
    nn.init.normal_(last.weight, std=0.1)


def step(model: Classifier, images: Tensor, weight_decay: float) -> None:
    """One step of training with every parameter in the optimiser, frozen or not."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=weight_decay)
    model.train()
    loss = nn.functional.cross_entropy(model(images), torch.tensor([0, 2]))
    assert loss.isfinite()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def copied(tensors: list[nn.Parameter]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def moved(tensors: list[nn.Parameter], before: list[Tensor]) -> list[bool]:
    return [not torch.equal(new, old) for new, old in zip(tensors, before, strict=True)]


def first_uses(model: Classifier, images: Tensor) -> dict[nn.Parameter, int]:
    """When, in a pass, the module of each parameter is first called.

    A module whose parameters are used without a call counts with what it lies in. The body's own
    parameters (a class token, the positions) have no moment that could be observed.
    """
    called: dict[str, int] = {}

    def note(name: str, *_: object) -> None:
        called.setdefault(name, len(called))

    handles = [
        module.register_forward_pre_hook(partial(note, name))
        for name, module in model.named_modules()
        if name not in ("", "body")
    ]
    with torch.inference_mode():
        model(images)
    for handle in handles:
        handle.remove()
    moments = {}
    for name, parameter in model.named_parameters():
        owner = name.rpartition(".")[0]
        while owner and owner not in called:
            owner = owner.rpartition(".")[0]
        if owner:
            moments[parameter] = called[owner]
    return moments


@each_family
def test_groups_hold_every_parameter_once_and_in_order_of_depth(family: str) -> None:
    model = classifier(family)
    moments = first_uses(model, two_images(model))
    assert len(moments) > 0.9 * len(list(model.parameters()))
    for n_groups in (3, None, 4):
        model.n_groups = n_groups
        groups = model.groups()
        everything = [id(parameter) for group in groups for parameter in group]
        assert len(everything) == len(set(everything))
        assert set(everything) == {id(parameter) for parameter in model.parameters()}
        assert groups[-1] == list(model.head.parameters())
        assert len(summary(model)) == len(groups)
        uses = [[moments[each] for each in group if each in moments] for group in groups]
        assert all(uses)
        together = family in SIDE_BY_SIDE and n_groups is None
        for shallow, deep in pairwise(uses):
            assert (min(shallow) if together else max(shallow)) < min(deep)


@each_family
def test_there_are_as_many_depths_as_timm_knows(family: str) -> None:
    n_groups = len(classifier(family, n_groups=None).groups())
    if family in WITHOUT_MATCHER:
        assert FACTS[family]["groups"] == "none: no group_matcher"
        assert n_groups >= 4
    else:
        assert n_groups == int(FACTS[family]["groups"])


@each_family
def test_what_is_frozen_stays_to_the_bit(family: str) -> None:
    model = classifier(family)
    freeze_to(model, -1)
    head = list(model.head.parameters())
    body = {name: tensor.clone() for name, tensor in model.body.state_dict().items()}
    before = copied(head)
    step(model, two_images(model), weight_decay=0.5)
    for name, tensor in model.body.state_dict().items():
        assert torch.equal(tensor, body[name]), name
    assert any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in head)
    assert any(moved(head, before))


@each_family
def test_one_step_trains_what_is_thawed_and_nothing_else(family: str) -> None:
    model = classifier(family, n_groups=4)
    images = two_images(model)
    give_the_head_an_opinion(model)
    freeze_to(model, 1)
    before = [copied(group) for group in model.groups()]
    buffers = {name: buffer.clone() for name, buffer in model.body.named_buffers()}
    step(model, images, weight_decay=0)
    frozen, *thawed = [moved(*pair) for pair in zip(model.groups(), before, strict=True)]
    assert not any(frozen)
    assert [any(group) for group in thawed] == [True] * 3
    freeze_to(model, 0)
    first = copied(model.groups()[0])
    step(model, images, weight_decay=0)
    assert any(moved(model.groups()[0], first))
    for name, buffer in model.body.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


@each_family
def test_features_reach_the_linear_head(family: str) -> None:
    model = classifier(family)
    images = two_images(model)
    with torch.inference_mode():
        features = model.features(images)
    assert features.shape == (2, model.body.head_hidden_size)
    assert features.isfinite().all()
    assert features.shape[1] == int(FACTS[family]["head_hidden_size"] or 512)


@each_family
def test_features_reach_fastais_head(family: str) -> None:
    model = classifier(family, "fastai")
    images = two_images(model)
    with torch.inference_mode():
        if family in LISTS:
            with pytest.raises(ValueError, match="list of maps: use head='linear'"):
                model(images)
            return
        features = model.features(images)
        assert features.ndim == 4
        assert features.shape[:2] == (2, model.body.num_features)
        assert features.isfinite().all()
        places = features[0, 0].numel()
        assert math.isqrt(places) ** 2 == places, "a token that is no place of a square image"
        assert model(images).shape == (2, N_CLASSES)


@each_family
def test_an_answer_depends_on_its_own_image_alone(family: str) -> None:
    model = classifier(family)
    give_the_head_an_opinion(model)
    images = two_images(model)
    others = torch.stack([images[0], torch.randn_like(images[1])])
    with torch.inference_mode():
        answers, changed = model(images), model(others)
    assert torch.equal(answers[0], changed[0])
    assert not torch.equal(answers[1], changed[1])


UNNAMED = {
    "resnet18": set[str](),
    "convnext_atto": {"head.norm.weight", "head.norm.bias"},
    "vit_tiny_patch16_224": set[str](),
    "swin_tiny_patch4_window7_224": set[str](),
    "tf_efficientnet_lite0": set[str](),
    "mambaout_femto": {
        *("head.norm.weight", "head.norm.bias", "head.pre_logits.fc.weight"),
        *("head.pre_logits.fc.bias", "head.pre_logits.norm.weight", "head.pre_logits.norm.bias"),
    },
}


@pytest.mark.parametrize(
    "family", [case for case in CASES if case.values[0] not in WITHOUT_MATCHER]
)
def test_layer_decay_is_timms(family: str) -> None:
    """But for what timm's matcher does not name: it is pretrained, and goes with the last depth.

    (Without a matcher timm has no depths, and takes the tensors by the dozen.)
    """
    whole = timm.create_model(family, num_classes=N_CLASSES)
    names = {parameter: name for name, parameter in whole.named_parameters()}
    theirs = {
        names[parameter]: group["lr_scale"]
        for group in param_groups_layer_decay(whole, layer_decay=0.75)
        for parameter in group["params"]
    }
    model = classifier(family, n_groups=None)
    *body, _ = model.groups()
    *rates, head_rate = layer_decay(1.0, len(body) + 1, 0.75)
    names = {parameter: name for name, parameter in model.body.named_parameters()}
    ours = {
        names[parameter]: rate
        for group, rate in zip(body, rates, strict=True)
        for parameter in group
    }
    unnamed = {name for name in ours if theirs[name] == 1}
    assert {theirs[name] for name in set(theirs) - set(ours)} == {head_rate}
    assert {name: ours[name] for name in unnamed} == dict.fromkeys(unnamed, 0.75)
    assert unnamed == UNNAMED.get(family, unnamed)
    assert len(ours) > len(unnamed)
    for name in set(ours) - unnamed:
        assert ours[name] == theirs[name], name


def test_too_many_groups_are_refused_with_the_number_of_depths() -> None:
    with pytest.raises(ValueError, match="n_groups is 11, but this body has 9 depths"):
        create_classifier("resnet18", N_CLASSES, pretrained=False, n_groups=11)
    model = classifier("resnet18", n_groups=10)
    assert len(model.groups()) == 10
    for n_groups in (11, 1, 0, -1):
        model.n_groups = n_groups
        with pytest.raises(ValueError, match="2 to 10 groups"):
            model.groups()


def test_three_groups_are_cut_at_half_of_the_depths() -> None:
    model = classifier("resnet18", n_groups=None)
    *depths, head = model.groups()
    model.n_groups = 3
    early = [parameter for depth in depths[:5] for parameter in depth]
    late = [parameter for depth in depths[5:] for parameter in depth]
    assert model.groups() == [early, late, head]
    assert list(summary(model).index) == ["early body", "late body", "head"]
    model.n_groups = 4
    assert list(summary(model).index) == ["body 0", "body 1", "body 2", "head"]


def test_the_number_of_groups_is_the_last_parameter() -> None:
    for function in (create_classifier, Classifier):
        *_, last = inspect.signature(function).parameters.values()
        assert (last.name, last.default) == ("n_groups", 3)
