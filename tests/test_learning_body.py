"""A body that learns in quick ways learns what it would have learnt anyhow."""

import sys
from typing import Any

import pytest
import torch
from test_speed import FAMILIES, images_for, shake_statistics
from torch import Tensor, nn
from torch.nn import functional as F

from petnb.data import ImageData
from petnb.frozen_part import frozen_part
from petnb.learner import vision_learner
from petnb.learning_body import (
    ClampInPlace,
    DepthwiseConv,
    FoldedConv,
    LearningModel,
    QuickFunctions,
    slow_on_the_way_back,
)
from petnb.model import Classifier, create_classifier, freeze_to
from petnb.speed import relative_error


def flat(gradients: Any) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])


def gradients(model: Any, classifier: Classifier, images: Tensor) -> Tensor:
    """Of cross-entropy, by all that may learn."""
    learnt = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    loss = F.cross_entropy(model(images), torch.arange(len(images)))
    return flat(torch.autograd.grad(loss, learnt, allow_unused=True))


def classifier(name: str, **options: Any) -> Classifier:
    """Random weights, statistics as of a trained body, a head that sends gradients back."""
    model = create_classifier(name, 3, pretrained=False, train_bn=False, **options)
    shake_statistics(model.body)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        nn.init.normal_(model.head[-1].weight, std=0.1)  # type: ignore[arg-type]
    return model.train()


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_those_of_the_model(name: str) -> None:
    model = classifier(name).eval()
    images = images_for(model)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    learning = LearningModel(model, images, "float32")
    assert not model.training
    error = relative_error(gradients(learning, model, images), gradients(model, model, images))
    assert error < 1e-3
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    if name not in ("densenet121", "convnext_atto", "vit_tiny_patch16_224"):
        assert learning.n_folded


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "convnext_atto", "resnet18"])
def test_bfloat16_is_as_near_as_autocast_alone(name: str) -> None:
    model = classifier(name).eval()
    images = images_for(model, 3)
    exact = gradients(model, model, images)
    short = gradients(LearningModel(model, images, "bfloat16"), model, images)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = gradients(model, model, images)
    assert relative_error(short, exact) < 1.2 * relative_error(autocast, exact)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_frozen_groups_stay_without_gradient(n: int) -> None:
    model = classifier("resnet18")
    freeze_to(model, n)
    model.train()
    images = images_for(model)
    learning = LearningModel(model, images, "float32")
    F.cross_entropy(learning(images), torch.arange(2)).backward()  # type: ignore[no-untyped-call]
    for number, group in enumerate(model.groups()):
        assert all((parameter.grad is not None) == (number >= n) for parameter in group)


def test_statistics_that_move_are_not_folded() -> None:
    model = create_classifier("resnet18", 3, pretrained=False, train_bn=True).train()
    images = images_for(model, 4)
    other = create_classifier("resnet18", 3, pretrained=False, train_bn=True).train()
    learning = LearningModel(model, images)
    assert learning.n_folded == 0
    assert all(
        torch.equal(one, another)
        for one, another in zip(model.buffers(), other.buffers(), strict=True)
    )
    learning(images)
    other(images)
    assert not torch.equal(
        next(model.buffers()), next(create_classifier("resnet18", 3, pretrained=False).buffers())
    )
    if learning.precision == "float32":
        assert all(
            torch.equal(one, another)
            for one, another in zip(model.buffers(), other.buffers(), strict=True)
        )


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_folded_convolution(affine: bool, bias: bool) -> None:
    conv = nn.Conv2d(3, 4, 3, bias=bias)
    norm = nn.BatchNorm2d(4, affine=affine).eval()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(torch.tensor([0.3, -0.2, 0.1, 1.0]))
    norm.running_var.copy_(torch.tensor([0.5, 2.0, 1.0, 1.5]))
    images = torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)
    learnt = [*conv.parameters(), *norm.parameters()]
    expected = norm(conv(images))
    found = FoldedConv(conv, norm)(images)
    assert torch.allclose(found, expected, atol=1e-6)
    one, other = (flat(torch.autograd.grad(y.sin().sum(), learnt)) for y in (found, expected))
    assert relative_error(one, other) < 1e-5


def test_clamping_in_place_has_relu6_s_gradient_at_its_corners() -> None:
    corners = torch.tensor([-1.0, 0.0, 1e-30, 3.0, 6.0, 6.0000005, 9.0], requires_grad=True)
    (expected,) = torch.autograd.grad(F.relu6(corners).sum(), corners)
    (found,) = torch.autograd.grad(ClampInPlace.apply(corners * 1).sum(), corners)
    assert torch.equal(found, expected)


def test_an_activation_that_is_not_in_place_leaves_its_input() -> None:
    images = torch.linspace(-2, 8, 11)
    with QuickFunctions():
        nn.ReLU6()(images)
        nn.Hardtanh(inplace=False)(images)
    assert torch.equal(images, torch.linspace(-2, 8, 11))
    with QuickFunctions():
        nn.Hardtanh(-1, 1, inplace=True)(images)
    assert images.max() == 1


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [(3, 2, 1, 1), (5, 1, 2, 1), (5, 2, 0, 1), (5, (2, 3), (2, 1), (2, 1)), ((7, 3), 2, 1, 1)],
)
def test_a_depthwise_convolution(
    kernel: Any, stride: Any, padding: Any, dilation: Any, short: bool, bias: bool
) -> None:
    conv = nn.Conv2d(4, 4, kernel, stride, padding, dilation, groups=4, bias=bias)
    images = torch.linspace(-1, 1, 2 * 4 * 15 * 12).sin().view(2, 4, 15, 12).requires_grad_()
    geometry = (conv.stride, conv.padding, conv.dilation, False, (0, 0), 4)
    learnt = [images, *conv.parameters()]
    expected = conv(images)
    other = flat(torch.autograd.grad(expected.square().sum(), learnt))
    with torch.autocast("cpu", torch.bfloat16, enabled=short):
        found = DepthwiseConv.apply(images, conv.weight, conv.bias, *geometry)
        one = flat(torch.autograd.grad(found.float().square().sum(), learnt))
    assert found.dtype == (torch.bfloat16 if short else torch.float32)
    assert relative_error(found.detach(), expected.detach()) < (0.01 if short else 1e-6)
    assert relative_error(one, other) < (0.01 if short else 1e-5)


def test_only_what_learns_has_a_gradient() -> None:
    conv = nn.Conv2d(4, 4, 5, padding=2, groups=4)
    assert conv.bias is not None
    conv.weight.requires_grad_(False)
    images = torch.ones(1, 4, 8, 8, requires_grad=True)
    geometry = (conv.stride, conv.padding, conv.dilation, False, (0, 0), 4)
    DepthwiseConv.apply(images, conv.weight, conv.bias, *geometry).sum().backward()
    assert images.grad is not None
    assert conv.weight.grad is None
    assert conv.bias.grad is not None
    assert torch.equal(conv.bias.grad, torch.full((4,), 64.0))


def test_which_convolutions_go_another_way_back() -> None:
    wide, strided = torch.zeros(8, 1, 5, 5), torch.zeros(8, 1, 3, 3)
    assert slow_on_the_way_back(wide, (1, 1), 8)
    assert not slow_on_the_way_back(strided, (2, 2), 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert slow_on_the_way_back(strided, (2, 2), 8)
        assert not slow_on_the_way_back(strided, (1, 1), 8)
        assert not slow_on_the_way_back(torch.zeros(8, 8, 5, 5), (2, 2), 1)
        assert not slow_on_the_way_back(torch.zeros(8, 2, 5, 5), (1, 1), 4)
        assert not slow_on_the_way_back(torch.zeros(16, 1, 5, 5), (1, 1), 8)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return ImageData.drawn_pets(images_per_breed=12, pixels=128, size=64, batch_size=25, workers=0)


def test_what_the_twin_learns_the_model_knows(data: ImageData) -> None:
    learn = vision_learner(data, show_progress=False, precision="float32")
    before = [parameter.clone() for parameter in learn.model.parameters()]
    statistics = [buffer.clone() for buffer in learn.model.body.buffers()]
    learn.unfreeze()
    learn.fit(1, 1e-3)
    moved = [
        not torch.equal(one, other)
        for one, other in zip(before, learn.model.parameters(), strict=True)
    ]
    assert all(moved)
    assert all(
        torch.equal(one, other)
        for one, other in zip(statistics, learn.model.body.buffers(), strict=True)
    )
    assert "49 batch norms folded" in learn.choices["training"]
    assert learn.choices["training"] in repr(learn)


def test_mixing_with_a_frozen_body(data: ImageData) -> None:
    learn = vision_learner(data, show_progress=False, precision="float32")
    body = [parameter.clone() for parameter in learn.model.body.parameters()]
    learn.fit(1, mixup=0.4)
    assert all(
        torch.equal(one, other)
        for one, other in zip(body, learn.model.body.parameters(), strict=True)
    )
    assert learn.model.head[-1].weight.abs().sum() > 0  # type: ignore[operator]


# -- Compiled ------------------------------------------------------------------------------------


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the compiler would see, forward and backward, without its machine code."""
    monkeypatch.setattr("petnb.learning_body.BACKEND", "aot_eager")


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("n", [0, 1])
def test_compiled_gradients_are_those_of_the_model(n: int) -> None:
    model = classifier("resnet10t")
    freeze_to(model, n)
    model.train()
    images = torch.linspace(-2, 2, 3 * 3 * 64 * 64).sin().view(3, 3, 64, 64)
    part = frozen_part(model, 64)
    rest = part.rest if part else None
    inputs = part.module(images) if part else images
    learning = LearningModel(model, inputs, "float32", rest, compiled=True)
    expected = gradients(model, model, images)
    assert relative_error(gradients(learning, model, inputs), expected) < 1e-5
    assert str(learning) == "float32, compiled (as asked for)"


@pytest.mark.usefixtures("quickly")
def test_a_learner_trains_compiled(data: ImageData) -> None:
    losses = []
    for compiled in (False, True):
        options: dict[str, Any] = {"precision": "float32", "pretrained": False}
        options |= {"compiled": compiled, "train_bn": False, "show_progress": False}
        learn = vision_learner(data, "resnet10t", **options)
        learn.fit(1, 1e-3)
        losses.append(learn.recorder.losses)
        assert ("compiled" in learn.choices["training"]) == compiled
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.skipif(sys.platform == "win32", reason="there torch looks for another compiler")
def test_without_a_compiler_nothing_moves() -> None:
    """Torch is told of a compiler that is not there."""
    from torch._inductor import config

    model, images = classifier("resnet10t"), torch.ones(2, 3, 64, 64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    learning = LearningModel(model, images, "float32", compiled=True)
    missing: dict[str, Any] = {"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}
    with (
        config.patch(missing),
        pytest.raises(RuntimeError, match=r"no-such-compiler.*compiled=False"),
    ):
        learning(images)
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
