"""The same images in the same order, however many processes load them, and however they start."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from petnb.data import ImageData
from petnb.transforms import epoch_batches


@pytest.fixture(scope="module")
def data() -> ImageData:
    """60 training images in four batches."""
    return ImageData.drawn_pets(images_per_breed=8, pixels=128, size=64, batch_size=15, workers=0)


def two_epochs(data: ImageData, start: str | None = None) -> list[Tensor]:
    """Images and targets of epochs 3 and 4, from a loader that is used twice."""
    loader = data.train
    loader.multiprocessing_context = start
    found: list[Tensor] = []
    for epoch in (3, 4):
        epoch_batches(loader).set_epoch(epoch)
        found += [tensor for batch in loader for tensor in batch]
    return found


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("workers", "start"), [(1, "fork"), (3, "fork"), (2, "spawn")])
def test_processes_do_not_matter(data: ImageData, workers: int, start: str) -> None:
    alone = two_epochs(replace(data))
    together = two_epochs(replace(data, workers=workers), start)
    assert len(alone) == len(together) == 2 * 2 * 4
    assert all(torch.equal(*pair) for pair in zip(alone, together, strict=True))
    assert not torch.equal(alone[0], alone[8])  # The epochs do differ


def test_a_batch_is_its_images(data: ImageData) -> None:
    """Asked for one by one, or at once as a loader does."""
    dataset = data.train.dataset
    keys = [(2, 7), (0, 3), (2, 3), (2, 7)]
    at_once = dataset.__getitems__(keys)  # type: ignore[attr-defined]
    one_by_one = [dataset[key] for key in keys]
    for (image, target), (same_image, same_target) in zip(at_once, one_by_one, strict=True):
        assert torch.equal(image, same_image)
        assert torch.equal(target, same_target)
    assert not torch.equal(at_once[1][0], at_once[2][0])
