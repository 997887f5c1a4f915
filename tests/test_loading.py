"""The same images in the same order, however many processes load them, and however they start."""

import multiprocessing
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import v2

from petnb.data import ImageData
from petnb.learner import Callback, Fit, Learner, vision_learner
from petnb.transforms import (
    BalancedBatches,
    WorkerKilledError,
    decoding_threads,
    epoch_batches,
    make_loader,
    relight,
)


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
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {start} on this system")
    alone = two_epochs(replace(data))
    together = two_epochs(replace(data, workers=workers), start)
    assert len(alone) == len(together) == 2 * 2 * 4
    assert all(torch.equal(*pair) for pair in zip(alone, together, strict=True))
    assert not torch.equal(alone[0], alone[8])  # The epochs do differ


def test_threads_do_not_matter() -> None:
    """The light of a batch, to the bit: among several cores sums come in another order."""
    dice = torch.Generator().manual_seed(0)
    images = torch.randint(256, (9, 3, 300, 300), dtype=torch.uint8, generator=dice)
    factors = 0.8 + 0.4 * torch.rand(9, 3, generator=dice)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            found.append(relight(images, factors))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])
    assert not torch.equal(found[0], images)


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


class Confess(v2.Transform):  # type: ignore[misc]
    """A view that says which process made it, and with how many threads of each kind."""

    def forward(self, image: Tensor) -> Tensor:
        told = [os.getpid(), torch.get_num_threads(), decoding_threads()]
        return torch.tensor(told)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_stay_and_take_one_core_each(data: ImageData) -> None:
    loader = replace(data, workers=2).train
    loader.dataset.transform = Confess()  # type: ignore[attr-defined]
    told = []
    for _ in range(3):  # Epochs
        told.append(torch.cat([batch for batch, _ in loader]))
    processes = [set(epoch[:, 0].tolist()) for epoch in told]
    assert processes[0] == processes[1] == processes[2]
    assert len(processes[0]) == 2
    assert os.getpid() not in processes[0]
    assert (torch.cat(told)[:, 1:] == 1).all()


# -- Each class equally often -------------------------------------------------------------------


@given(
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=6),
    batch_size=st.integers(1, 50),
    seed=st.integers(0, 2**32),
)
def test_each_class_equally_often(counts: list[int], batch_size: int, seed: int) -> None:
    targets = np.random.default_rng(seed).permutation(np.repeat(range(len(counts)), counts))
    batches = BalancedBatches(targets.tolist(), batch_size, seed)
    comings = np.zeros(len(targets), dtype=int)
    for epoch in range(5):
        batches.set_epoch(epoch)
        dealt = list(batches)
        keys = [key for batch in dealt for key in batch]
        assert len(dealt) == len(batches)
        assert max(map(len, dealt)) <= batch_size
        assert len(set(keys)) == len(keys)  # No view twice
        per_class = np.bincount(targets[[image for _, image in keys]], minlength=len(counts))
        assert len(set(per_class.tolist())) == 1
        assert len(targets) <= len(keys) < len(targets) + len(counts)
        np.add.at(comings, [image for _, image in keys], 1)
        for target in range(len(counts)):  # Nobody is more than a turn ahead
            assert np.ptp(comings[targets == target]) <= 1


def test_an_epoch_does_not_depend_on_those_before_it() -> None:
    walked, asked = (BalancedBatches([0] * 9 + [1] * 2, 4, 7) for _ in range(2))
    for epoch in range(4):
        walked.set_epoch(epoch)
        last = list(walked)
    asked.set_epoch(3)
    assert list(asked) == last
    asked.set_epoch(3, view=1)  # Another order of the same views of the same images
    walked.set_epoch(1)
    assert asked.walk() != walked.walk()
    assert sorted(asked.walk()) == sorted(walked.walk())


@pytest.fixture(scope="module")
def uneven(data: ImageData) -> ImageData:
    """Nine images to learn from of the first breed, two of the others."""
    number = data.items.groupby(["split", "label"]).cumcount()
    keep = (data.items["label"] == data.vocab[0]) | (number < 2)
    items = data.items[keep].reset_index(drop=True)
    return replace(data, items=items, balance=True, size=32, batch_size=8)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_balanced_with_processes(uneven: ImageData) -> None:
    alone, together = two_epochs(replace(uneven)), two_epochs(replace(uneven, workers=2))
    assert all(torch.equal(*pair) for pair in zip(alone, together, strict=True))
    counts = torch.cat(alone[1 : len(alone) // 2 : 2]).bincount()
    assert len(set(counts.tolist())) == 1


def test_only_learning_is_balanced(uneven: ImageData) -> None:
    assert epoch_batches(uneven.train).balanced
    in_order = make_loader(uneven, "train", augment=False)
    for loader, side in ((uneven.valid, "valid"), (in_order, "train")):
        images = [image for batch in epoch_batches(loader) for _, image in batch]
        assert images == list(range(len(uneven.on_side(side))))


class Watch(Callback):
    """Notes the files of every step."""

    def __init__(self) -> None:
        self.files: list[str] = []

    def after_step(self, fit: Fit) -> None:
        from petnb.learner import files

        fit.seen -= fit.n_images
        self.files += files(fit)
        fit.seen += fit.n_images


def trained(data: ImageData, forget: bool = False, **options: Any) -> tuple[Learner, list[float]]:
    """A head that was trained for four epochs on two views, with or without what is kept."""
    learn = vision_learner(replace(data), "resnet10t", pretrained=False, show_progress=False)
    if forget:
        learn.store.budget = 0
    learn.fit(4, 1e-2, views=2, **options)
    return learn, learn.recorder.losses


def test_kept_features_are_those_of_the_images_that_were_dealt(uneven: ImageData) -> None:
    kept, losses = trained(uneven)
    computed, same_losses = trained(uneven, forget=True)
    assert kept.store.used > 0
    assert computed.store.used == 0
    assert losses == pytest.approx(same_losses, rel=1e-4)
    unbalanced = trained(replace(uneven, balance=False))[1]
    assert len(unbalanced) != len(losses) or unbalanced != pytest.approx(losses, rel=1e-2)


def test_one_learner_may_change_its_mind(uneven: ImageData) -> None:
    """What was kept for one way of dealing is not taken for the other."""
    learn, _ = trained(replace(uneven, balance=False))
    learn.data = replace(uneven)
    learn.fit(2, 1e-2, views=2)
    assert len(learn.recorder.losses) == 2 * len(epoch_batches(learn.data.train))


def test_the_files_of_a_step_are_those_that_were_dealt(uneven: ImageData) -> None:
    watch = Watch()
    trained(uneven, callbacks=[watch])
    label = dict(zip(uneven.items["path"], uneven.items["label"], strict=True))
    counts = np.unique([label[path] for path in watch.files], return_counts=True)[1]
    assert len(counts) == len(uneven.vocab)
    assert len(set(counts.tolist())) == 1


# -- A worker that is killed --------------------------------------------------------------------


def kill_a_worker(loader: Any) -> None:
    os.kill(loader._iterator._workers[0].pid, signal.SIGKILL)


def kill_and_go_on(loader: Any, batches: Any) -> None:
    kill_a_worker(loader)
    for _ in batches:
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_killed_worker_is_explained_and_the_loader_lives_on(data: ImageData) -> None:
    loader = replace(data, workers=2, batch_size=1).train
    batches = iter(loader)
    next(batches)
    pid = loader._iterator._workers[0].pid  # type: ignore[union-attr]
    with pytest.raises(WorkerKilledError, match="memory") as caught:
        kill_and_go_on(loader, batches)
    assert isinstance(caught.value, RuntimeError)
    message = str(caught.value)
    assert str(pid) in message
    assert "workers=0" in message
    assert "cache_bytes=0" in message
    again = [targets for _, targets in loader]  # With new workers
    assert sum(map(len, again)) == 60


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_worker_killed_in_training(data: ImageData, tmp_path: Path) -> None:
    """What was learnt is in the checkpoint, and goes on without workers to the same bits."""

    class Kill(Callback):
        def after_step(self, fit: Fit) -> None:
            if fit.step == 4:
                kill_a_worker(fit.learn.data.train)

    small = replace(data, workers=2, batch_size=4, size=32)
    alone = replace(small, workers=0)
    options: dict[str, Any] = {"show_progress": False, "precision": "float32"}
    learn, again, whole = (
        vision_learner(images, "resnet10t", pretrained=False, path=tmp_path / place, **options)
        for images, place in ((small, "a"), (alone, "a"), (alone, "b"))
    )
    with pytest.raises(WorkerKilledError, match="fewer processes"):
        learn.fit(2, 1e-3, callbacks=[Kill()], checkpoint_every=4)
    assert 4 <= learn.n_steps < 30
    again.fit(2, 1e-3, resume=True)
    whole.fit(2, 1e-3)
    pairs = zip(again.model.parameters(), whole.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
