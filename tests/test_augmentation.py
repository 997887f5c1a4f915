"""Augmentation against fastai's values, over many draws, in other processes and on photographs."""

import inspect
import json
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastai_facts import FACTS, FOLDER
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from petnb import augmentation
from petnb.augmentation import (
    PRESIZE,
    RandomHomography,
    RandomLighting,
    aug_transforms,
    choose_augmentation,
    named_augmentations,
    presize,
    relight,
    sample,
    turn,
    view_matrix,
    zoom,
)
from petnb.data import ImageData, labels_from_names, open_image
from petnb.transforms import Normalize, show_tensors, valid_transform

MOVES: dict[str, Any] = json.loads((FOLDER / "fastai_moves.json").read_text())


def picture(seed: int, height: int = 40, width: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator)


@pytest.fixture
def pets() -> ImageData:
    return ImageData.drawn_pets(images_per_breed=12, pixels=128, size=32, batch_size=20, workers=0)


# -- fastai's values -----------------------------------------------------------------------------


def test_lighting() -> None:
    pixel = torch.tensor(FACTS["tfm.lighting"]["inputs"]["pixel"]).view(3, 1, 1)
    found = {
        "brightness_0.6": relight(pixel, brightness=0.6),
        "brightness_0.5": relight(pixel, brightness=0.5),
        "contrast_1.25": relight(pixel, contrast=1.25),
        "contrast_0.8": relight(pixel, contrast=0.8),
        "saturation_0.5": relight(pixel, saturation=0.5),
        "hue_0.1": F.adjust_hue(pixel, 0.1),  # torchvision's is fastai's, so petnb has none
    }
    assert found.keys() == FACTS["tfm.lighting"]["expected"].keys()
    for name, values in FACTS["tfm.lighting"]["expected"].items():
        assert np.allclose(found[name].flatten(), values, rtol=1e-5, atol=1e-5), name


def test_squished_validation() -> None:
    expected = FACTS["tfm.rrc_valid"]["expected"]
    (width, height), side = expected["cp_size"], expected["final_size"][0]
    photograph = F.to_pil_image(picture(0, height, width))
    squished = photograph.resize(tuple(expected["final_size"]), Image.Resampling.BICUBIC)
    margin = (side - FACTS["tfm.rrc_valid"]["inputs"]["size"]) // 2
    middle = squished.crop((margin, margin, side - margin, side - margin))
    found = valid_transform(224, squish=True)(photograph)
    differences = (found.int() - F.pil_to_tensor(middle).int()).abs()
    assert differences.max() <= 1  # torch rounds its weights, after Pillow's algorithm, once more
    other = (found.int() - valid_transform(224)(photograph).int()).abs()
    assert other.float().mean() > 10


def test_pattern_in_the_whole_path() -> None:
    fact = FACTS["data.regex_label.path_v1"]
    paths, pattern = fact["inputs"]["paths"], fact["inputs"]["pat"]
    assert labels_from_names(paths, pattern, match="path") == fact["expected"]
    with pytest.raises(ValueError, match="3 of 3 names"):
        labels_from_names(paths, pattern)
    with pytest.raises(ValueError, match=r"1 of 1 paths, such as \['photos/IMG.jpg'\]"):
        labels_from_names(["photos/IMG.jpg"], pattern, match="path")
    with pytest.raises(ValueError, match="match is 'folder'"):
        labels_from_names(paths, pattern, match="folder")  # type: ignore[arg-type]


def test_pattern_in_the_path_of_a_folder(pets: ImageData) -> None:
    data = ImageData.from_name_re(pets.root, r"([^/]+)_\d+\.jpg$", match="path")
    assert data.items["label"].tolist() == pets.items["label"].tolist()


@pytest.mark.parametrize("move", MOVES["moves"], ids=lambda move: str(move["draws"]))
def test_pixels_come_from_where_fastai_takes_them(move: dict[str, Any]) -> None:
    draws, last = move["draws"], MOVES["side"] - 1
    closer = (draws["zoom"], 2 * draws["zoom_x"] - 1, 2 * draws["zoom_y"] - 1)
    warp = (draws["warp_x"], draws["warp_y"])
    matrix = view_matrix(warp, 4 * draws["flip"], draws["degrees"], closer)
    for (row, column), source in zip(MOVES["cells"], move["sources"], strict=True):
        u, v, w = matrix @ (2 * column / last - 1, 2 * row / last - 1, 1)
        assert np.allclose((u / w, v / w), source, atol=2e-5)


def test_defaults() -> None:
    ours = inspect.signature(aug_transforms).parameters
    assert ours.keys() == MOVES["aug_transforms_defaults"].keys()
    for name, default in MOVES["aug_transforms_defaults"].items():
        assert (ours[name].default or None) == (default or None), name


# -- Many draws ----------------------------------------------------------------------------------


def draws(n: int, **options: Any) -> list[dict[str, Any]]:
    chance = RandomHomography(**options)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return [chance.make_params([]) for _ in range(n)]


def test_each_move_happens_as_often_as_asked() -> None:
    many = draws(3000)
    moved = {
        "warp x": [each["warp"][0] != 0 for each in many],
        "warp y": [each["warp"][1] != 0 for each in many],
        "turn": [each["degrees"] != 0 for each in many],
        "zoom": [each["closer"][0] != 1 for each in many],
    }
    for name, happened in moved.items():
        assert abs(np.mean(happened) - 0.75) < 0.03, name
    assert abs(np.mean([each["tile"] == 4 for each in many]) - 0.5) < 0.03
    assert abs(np.corrcoef(moved["warp x"], moved["warp y"])[0, 1]) < 0.06


def test_ranges_are_filled_and_kept() -> None:
    many = draws(3000, p=1, min_zoom=0.9, min_scale=0.25)
    ranges = {
        "warp": ([value for each in many for value in each["warp"]], -0.2, 0.2),
        "turn": ([each["degrees"] for each in many], -10, 10),
        "zoom": ([each["closer"][0] for each in many], 0.9, 1.1),
        "place": ([value for each in many for value in each["closer"][1:]], -1, 1),
        "area": ([each["crop"][0] ** -2 for each in many], 0.25, 1),
    }
    for name, (values, low, high) in ranges.items():
        slack = 0.01 * (high - low)
        assert low - 1e-9 <= min(values) < low + slack, name
        assert high - slack < max(values) <= high + 1e-9, name
        assert abs(np.mean(values) - (low + high) / 2) < 3 * slack, name


def test_eight_tiles() -> None:
    tiles = np.array([each["tile"] for each in draws(4000, flip_vert=True)])
    shares = np.bincount(tiles, minlength=8) / len(tiles)
    assert abs(shares[0] - 9 / 16) < 0.03  # Half are left alone, and an eighth of the others
    assert (abs(shares[1:] - 1 / 16) < 0.015).all()
    square = picture(0)
    laid = {sample(square, view_matrix(tile=n), (40, 40)).numpy().tobytes() for n in range(8)}
    turned = [square.rot90(k, (1, 2)) for k in range(4)]
    expected = {x.numpy().tobytes() for t in turned for x in (t, t.flip(-1).contiguous())}
    assert laid == expected


def test_mult_strengthens_turn_tilt_and_light_but_not_zoom() -> None:
    moves, light = aug_transforms(mult=2).transforms
    assert (moves.max_rotate, moves.max_warp, moves.zooms) == (20, 0.4, (1, 1.1))
    assert light.max_lighting == 0.4
    (moves,) = aug_transforms(mult=2, max_lighting=0).transforms
    assert isinstance(moves, RandomHomography)


def test_light_changes_as_often_and_as_much_as_asked() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        many = [RandomLighting(0.2, 0.75).make_params([]) for _ in range(3000)]
    brightness = np.array([each["brightness"] for each in many])
    contrast = np.array([each["contrast"] for each in many])
    assert {each["saturation"] for each in many} == {1.0}
    assert abs(np.mean(brightness != 0.5) - 0.75) < 0.03
    assert abs(np.mean(contrast != 1) - 0.75) < 0.03
    assert 0.4 <= brightness.min() < 0.402
    assert 0.598 < brightness.max() <= 0.6
    assert 0.8 - 1e-9 <= contrast.min() < 0.802
    assert 1.248 < contrast.max() <= 1.25 + 1e-9
    assert abs(np.log(contrast).mean()) < 0.01


@given(
    factor=st.floats(1, 20), x=st.floats(-1, 1), y=st.floats(-1, 1), crop=st.floats(1, 5)
)
def test_zooms_and_crops_stay_inside_the_photograph(
    factor: float, x: float, y: float, crop: float
) -> None:
    matrix = view_matrix(closer=(factor, x, y), crop=(crop, -y, -x))
    corners = matrix @ np.array([(-1, -1, 1), (1, 1, 1)]).T
    assert (abs(corners[:2]) <= 1 + 1e-9).all()


@given(degrees=st.floats(-360, 360), aspect=st.floats(0.2, 5))
def test_turns_do_not_shear_a_rectangle(degrees: float, aspect: float) -> None:
    shape = np.diag([aspect, 1, 1])
    rigid = shape @ turn(degrees, aspect) @ np.linalg.inv(shape)
    assert np.allclose(rigid @ rigid.T, np.eye(3))
    assert np.isclose(np.linalg.det(rigid), 1)


@given(brightness=st.floats(0.05, 0.95), contrast=st.floats(0.3, 3))
def test_light_keeps_black_white_and_the_order_between(brightness: float, contrast: float) -> None:
    lit = relight(torch.arange(256, dtype=torch.float64) / 255, brightness, contrast)
    assert (lit.diff() > 0).all()
    assert lit[0] < 0.02
    assert lit[-1] > 0.98


def test_all_moves_cost_one_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*arguments: Any) -> Tensor:
        calls.append(arguments)
        return sample(*arguments)

    monkeypatch.setattr(augmentation, "sample", counted)
    augment = aug_transforms(p_affine=1, size=24, min_scale=0.5)
    assert augment(picture(0)).shape == (3, 24, 24)
    assert len(calls) == 1


@pytest.mark.parametrize(("height", "width"), [(30, 60), (60, 30), (33, 33)])
def test_size_of_the_new_picture(height: int, width: int) -> None:
    image = picture(1, height, width)
    for given_image in (image, F.to_pil_image(image)):
        assert aug_transforms()(given_image).shape == (3, height, width)
        assert aug_transforms(size=24)(given_image).shape == (3, 24, 24)
        assert aug_transforms(size=24)(given_image).dtype == torch.uint8


def test_labels_pass_through() -> None:
    image, label = aug_transforms(size=24)(picture(0), 5)
    assert image.shape == (3, 24, 24)
    assert label == 5


def test_extra_transforms_come_last() -> None:
    augment = aug_transforms(xtra_tfms=[v2.RandomErasing(p=1, value=0), v2.RandomInvert(p=1)])
    assert (augment(torch.full((3, 40, 40), 100, dtype=torch.uint8)) == 255).any()


def test_what_lies_outside_is_the_mirror_image() -> None:
    image = picture(2, 41, 41)
    seen = sample(image, zoom(0.5), (81, 81))
    assert torch.equal(seen[:, 20:61, 20:61], image)
    assert torch.equal(seen[:, 20:61, :21], image[:, :, :21].flip(-1))
    assert torch.equal(seen[:, 60:, 20:61], image[:, 20:].flip(-2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p_affine": 1.2}, "p_affine is 1.2; it must lie between 0 and 1"),
        ({"p_lighting": -0.1}, "p_lighting is -0.1"),
        ({"min_scale": 0}, "min_scale is 0"),
        ({"min_zoom": 1.2}, "min_zoom is 1.2; it must lie between 0.001 and 1.1"),
        ({"mult": 6}, r"mult \* max_lighting is 1.2"),
        ({"max_warp": 1.5}, r"mult \* max_warp is 1.5"),
    ],
)
def test_impossible_arguments(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        aug_transforms(**options)  # type: ignore[arg-type]


# -- Data ----------------------------------------------------------------------------------------


def views(data: ImageData, epoch: int = 0) -> Tensor:
    data.train.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
    return torch.cat([images for images, _ in data.train])


@pytest.mark.parametrize("name", named_augmentations(32))
def test_same_views_from_one_and_four_processes(pets: ImageData, name: str) -> None:
    state = torch.get_rng_state()
    expected = views(replace(pets, augment=name), epoch=3)
    assert torch.equal(torch.get_rng_state(), state)
    for workers in (1, 4) if name == "fastai" else (2,):
        assert torch.equal(views(replace(pets, augment=name, workers=workers), 3), expected)


def test_same_views_from_a_process_that_was_spawned(
    pets: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Notebooks that were tested before leave a main module without a specification behind
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None, raising=False)
    data = replace(pets, augment="fastai", workers=1)
    data.train.multiprocessing_context = "spawn"
    assert torch.equal(views(data), views(replace(pets, augment="fastai")))


@pytest.mark.parametrize("name", [name for name in named_augmentations(32) if name != "none"])
def test_another_epoch_and_another_seed_are_another_view(pets: ImageData, name: str) -> None:
    data = replace(pets, augment=name)
    other = replace(data, seed=1).train.dataset
    for index in range(5):
        first = data.train.dataset[0, index][0]
        assert not torch.equal(first, data.train.dataset[1, index][0])
        assert not torch.equal(first, other[0, index][0])


def test_default_is_as_it_was(pets: ImageData) -> None:
    assert torch.equal(views(pets), views(replace(pets, augment="petnb")))


def test_validation_does_not_depend_on_the_augmentation(pets: ImageData) -> None:
    held_out = torch.cat([images for images, _ in pets.valid])
    other = replace(pets, augment="trivialaugment").valid
    assert torch.equal(torch.cat([images for images, _ in other]), held_out)


def test_option_of_every_way_in(pets: ImageData) -> None:
    paths, labels = list(pets.items["path"]), list(pets.items["label"])
    data = ImageData.from_lists(paths, labels, size=32, augment="none", workers=0)
    image = valid_transform(32)(open_image(data.on_side("train")["path"][0], 64))
    assert torch.equal(data.train.dataset[5, 0][0], image)


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ("fastia", "augment is 'fastia'; give one of petnb, none, fastai"),
        (v2.RandomResizedCrop(40), r"torch.uint8 of shape \(3, 40, 40\)"),
        (v2.Resize(32), r"shape \(3, 32, 50\)"),
        (
            v2.Compose([v2.Resize((32, 32)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]),
            "torch.float32 .* leave ToDtype and Normalize out",
        ),
    ],
)
def test_what_does_not_give_squares_of_bytes(augment: Any, message: str) -> None:
    photograph = F.to_pil_image(picture(0, 64, 100))
    with pytest.raises(ValueError, match=message):
        choose_augmentation(augment, 32)(photograph)


@pytest.mark.parametrize("shape", [(20, 30), (300, 100), (64, 64), (375, 500)])
def test_presizing_gives_a_square(shape: tuple[int, int]) -> None:
    photograph = F.to_pil_image(picture(0, *shape))
    side = round(32 * PRESIZE)
    assert presize(32)(photograph).size == (side, side)


def test_show_batch_of_one_image_shows_the_next_epochs(pets: ImageData) -> None:
    data = replace(pets, augment="fastai")
    grid = data.show_batch(4, unique=True)
    first = int(data.train.batch_sampler.order(0)[0])  # type: ignore[union-attr]
    for epoch, axes in enumerate(grid.flat[:4]):
        expected = data.train.dataset[epoch, first][0].permute(1, 2, 0)
        assert (np.asarray(axes.images[0].get_array()) == expected.numpy()).all()
    assert len({axes.get_title() for axes in grid.flat[:4]}) == 1


def test_batch_as_the_model_sees_it(pets: ImageData) -> None:
    images, _ = next(iter(pets.train))
    normalize = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    grid = show_tensors(normalize(images), ["a", "b", "$c$"], normalize)
    for axes, image in zip(grid.flat[:3], images, strict=False):
        expected = image.permute(1, 2, 0).numpy()
        assert (np.asarray(axes.images[0].get_array()) == expected).all()


# -- Photographs ---------------------------------------------------------------------------------


def scaled(image: Image.Image, side: int) -> Tensor:
    pixels: Tensor = F.pil_to_tensor(image.resize((side, side), Image.Resampling.BICUBIC))
    return pixels


def decibels(image: Tensor, reference: Tensor) -> float:
    missed = (image.float() - reference.float())[:, 16:-16, 16:-16].square().mean()
    return float(10 * torch.log10(255**2 / missed))


def test_presizing_of_photographs(photographs: Path) -> None:
    """A little larger is better than the final size and than twice, as chapter 01a says."""
    images = map(open_image, sorted((photographs / "images").glob("*.jpg")))
    large = list(islice((image for image in images if min(image.size) >= 700), 8))
    assert len(large) == 8
    rows = []
    for image, params in zip(large, draws(8, p=1, do_flip=False), strict=True):
        square, matrix = F.center_crop(image, [min(image.size)] * 2), view_matrix(**params)
        whole = sample(scaled(square, 4 * 224), matrix, (4 * 224, 4 * 224))
        reference = scaled(F.to_pil_image(whole), 224)
        once = [sample(scaled(square, round(224 * f)), matrix, (224, 224)) for f in (1, PRESIZE, 2)]
        rows.append([decibels(view, reference) for view in once])
    same, little, twice = np.mean(rows, 0)
    assert little > same + 1
    assert little > twice + 1
