"""Heat maps: the same as pytorch-grad-cam's, for convolutional networks and transformers."""

import numpy as np
import pytest
import torch
from torch import nn

from petnb.attention import class_activation_map, grad_cam, layer_to_watch, overlay, seen_image
from petnb.data import ImageData
from petnb.drawing import draw_pet
from petnb.learner import Learner
from petnb.model import create_classifier


def learner(architecture: str, head: str = "linear") -> Learner:
    """Random weights, also in the head, and pictures of 224 pixels."""
    data = ImageData.drawn_pets(images_per_breed=2, pixels=64, size=224)
    model = create_classifier(architecture, 10, head, pretrained=False)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(3)
    for parameter in model.head.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, generator=generator)
    return Learner(data, model)


def batch(learn: Learner) -> torch.Tensor:
    """Two normalised pictures."""
    return learn.prepare(next(iter(learn.data.valid))[0][:2])


@pytest.mark.parametrize(
    ("architecture", "head", "reshape"),
    [
        ("resnet18", "linear", None),
        ("resnet18", "fastai", None),
        ("vit_tiny_patch16_224", "linear", "tokens"),
        ("swin_tiny_patch4_window7_224", "linear", "last"),
    ],
)
def test_heat_is_that_of_pytorch_grad_cam(
    architecture: str, head: str, reshape: str | None
) -> None:
    package = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    learn = learner(architecture, head)
    images, classes = batch(learn).repeat(5, 1, 1, 1), list(range(10))
    body = learn.model.body
    reshapes = {
        None: None,
        "tokens": lambda t: t[:, 1:].reshape(len(t), 14, 14, -1).permute(0, 3, 1, 2),
        "last": lambda t: t.permute(0, 3, 1, 2),
    }
    layer = {None: getattr(body, "layer4", None), "last": getattr(body, "norm", None)}
    target = layer_to_watch(body) or layer[reshape]
    learn.model.eval()
    with package.GradCAM(learn.model, [target], reshape_transform=reshapes[reshape]) as cam:
        targets = [ClassifierOutputTarget(number) for number in classes]
        cam(input_tensor=images.clone().requires_grad_(), targets=targets)
        activations = cam.activations_and_grads.activations[0].numpy()
        gradients = cam.activations_and_grads.gradients[0].numpy()
        expected = cam.get_cam_image(images, target, targets, activations, gradients)
    expected = np.maximum(expected, 0)
    expected /= np.maximum(expected.max(axis=(1, 2), keepdims=True), 1e-12)
    assert expected.any(axis=(1, 2)).sum() >= 4  # For some classes nothing speaks
    assert np.allclose(grad_cam(learn, images, classes), expected, atol=1e-4)


def test_a_map_leaves_the_learner_as_it_was() -> None:
    learn = learner("vit_tiny_patch16_224")
    before = {name: tensor.clone() for name, tensor in learn.model.state_dict().items()}
    grad_cam(learn, batch(learn), [0, 1])
    assert all(torch.equal(before[name], t) for name, t in learn.model.state_dict().items())
    assert all(parameter.grad is None for parameter in learn.model.parameters())
    assert not any(module._forward_hooks for module in learn.model.modules())


def test_hooks_go_when_the_model_fails() -> None:
    learn = learner("vit_tiny_patch16_224")
    with pytest.raises(IndexError):
        grad_cam(learn, batch(learn), [0, 10])
    with pytest.raises(AssertionError):
        grad_cam(learn, batch(learn)[:, :, :100], [0, 1])
    assert not any(module._forward_hooks for module in learn.model.modules())


def test_where_nothing_speaks_for_a_class_the_map_is_cold() -> None:
    learn = learner("resnet18")
    for parameter in learn.model.head.parameters():
        nn.init.zeros_(parameter)
    heat = class_activation_map(learn, draw_pet("pug", 1, 200), "pug")
    assert heat.shape == (224, 224)
    assert not heat.any()


def test_unknown_classes_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no class is called 'unicorn'; the 10 classes are"):
        class_activation_map(learner("resnet18"), draw_pet("pug", 1, 64), "unicorn")


def test_an_overlay_fits_pictures_of_any_shape() -> None:
    picture = draw_pet("pug", 1, 64).resize((90, 50)).convert("L")
    heat = np.zeros((7, 7), np.float32)
    heat[3, 3] = 1
    warm = np.asarray(overlay(picture, heat)).astype(int)
    assert warm.shape == (50, 90, 3)
    assert np.array_equal(warm[0, 0], np.asarray(picture.convert("RGB"))[0, 0])
    assert warm[25, 45, 0] - warm[25, 45, 2] > 20  # The middle has turned to orange and yellow


def test_the_seen_image_is_what_the_loader_gives() -> None:
    learn = learner("resnet18")
    expected = next(iter(learn.data.valid))[0][0].permute(1, 2, 0).numpy()
    path = learn.data.on_side("valid")["path"].iloc[0]
    assert np.array_equal(np.asarray(seen_image(learn.data, path)), expected)
