"""What test_distributed.py starts in one process and in several: trains, and tells what it saw.

Each process writes `rank-N.json` into the folder that the first argument names; the second
argument is a folder for drawings.
"""

import hashlib
import json
import os
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from petnb.callbacks import CSVLogger, SaveModel
from petnb.data import ImageData
from petnb.distributed import join_processes
from petnb.interpretation import interpret
from petnb.learner import Callback, Fit, Learner, vision_learner


def weights(learn: Learner) -> str:
    """A fingerprint of every weight and statistic."""
    digest = hashlib.sha256()
    for tensor in learn.model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def told(learn: Learner) -> dict[str, Any]:
    """What a fit left behind, but for the seconds."""
    rows = [{name: row[name] for name in row if name != "seconds"} for row in learn.recorder.rows]
    return {"losses": learn.recorder.losses, "norms": learn.recorder.norms, "rows": rows,
            "images": learn.recorder.images, "weights": weights(learn)}  # fmt: skip


def watched(loader: DataLoader[tuple[Tensor, Tensor]]) -> list[tuple[int, int]]:
    """The (view, index) of each image that this process decodes from now on."""
    asked: list[tuple[int, int]] = []
    dataset: Any = loader.dataset
    fetch = dataset.__getitems__

    def fetched(keys: list[tuple[int, int]]) -> Any:
        asked.extend(keys)
        return fetch(keys)

    dataset.__getitems__ = fetched
    return asked


def torch_gradients(learn: Learner, n_images: int) -> dict[str, float]:
    """How far DistributedDataParallel's gradient of one batch is from ours, as a share of it."""
    processes = learn.processes
    head: Any = learn.model.head
    dice, half = torch.Generator().manual_seed(1), (n_images + 1) // 2
    inputs, targets = torch.randn(n_images, 1280, generator=dice), torch.arange(n_images) % 10
    mine = slice(0, half) if processes.first else slice(half, n_images)
    torch.nn.init.normal_(head[1].weight, std=0.1, generator=dice)
    whole = torch.autograd.grad(F.cross_entropy(head(inputs), targets), list(head.parameters()))
    wrapped = DistributedDataParallel(head)
    F.cross_entropy(wrapped(inputs[mine]), targets[mine]).backward()  # type: ignore[no-untyped-call]
    theirs = [p.grad.clone() for p in head.parameters() if p.grad is not None]
    learn.model.zero_grad()
    loss = F.cross_entropy(head(inputs[mine]), targets[mine], reduction="sum") / n_images
    loss.backward()  # type: ignore[no-untyped-call]
    processes.add_up(learn.model, loss.item())
    ours = [p.grad for p in head.parameters() if p.grad is not None]
    learn.model.zero_grad()
    length = sum(float(one.norm()) for one in whole)
    return {
        name: sum(float((a - b).norm()) for a, b in zip(found, whole, strict=True)) / length
        for name, found in (("ours", ours), ("torch's", theirs))
    }


def main(out: Path, drawings: Path) -> None:
    """Everything that needs processes, in one start of them."""
    torch.set_num_threads(1)
    processes = join_processes()
    options: dict[str, Any] = {
        "images_per_breed": 5,
        "pixels": 64,
        "size": 64,
        "workers": 0,
        "root": drawings,
    }
    data = processes.in_turn(lambda: ImageData.drawn_pets(batch_size=11, **options))
    quiet: dict[str, Any] = {"show_progress": False, "precision": "float32"}
    found: dict[str, Any] = {"rank": processes.rank, "n": processes.n}

    learn = vision_learner(data, **quiet, path=out / "models")
    asked, asked_valid = watched(data.train), watched(data.valid)
    learn.fit_one_cycle(2, callbacks=[CSVLogger(out / "history.csv"), SaveModel("best")])
    found["fresh views"] = told(learn) | {"asked": list(asked), "valid": list(asked_valid)}

    interp = interpret(learn)
    found["interpretation"] = {"probs": interp.probs.tolist(), "targets": interp.targets.tolist(),
                               "paths": [os.path.basename(p) for p in interp.items["path"]],
                               "accuracy": interp.accuracy}  # fmt: skip
    before = weights(learn)
    finder = learn.lr_find(n_steps=15)
    found["finder"] = {"losses": finder.raw_losses, "restored": weights(learn) == before}

    learn = vision_learner(data, **quiet)
    asked = watched(data.train_plain)
    learn.fit_one_cycle(3, views=1)
    found["kept features"] = told(learn) | {"asked": list(asked)}
    found["kept features"]["bytes"] = learn.store.used

    learn = vision_learner(data, **quiet)
    learn.freeze_to(1)
    learn.fit_one_cycle(1, 1e-4, accumulate=20, clip=1.0)
    found["late body"] = told(learn)

    uneven = processes.in_turn(lambda: ImageData.drawn_pets(batch_size=11, **options))
    number = uneven.items.groupby(["split", "label"]).cumcount()
    kept = (number < 2) | uneven.items["label"].isin(uneven.vocab[:4])  # 4 or 2 to learn from
    uneven = replace(uneven, items=uneven.items[kept].reset_index(drop=True), balance=True)
    learn = vision_learner(uneven, **quiet)
    asked_balanced = watched(uneven.train)
    learn.fit_one_cycle(2)
    found["balanced"] = told(learn) | {"asked": list(asked_balanced)}
    learn = vision_learner(uneven, **quiet)
    learn.fit_one_cycle(3, views=1)
    found["balanced, kept"] = told(learn)

    learn = vision_learner(data, head="fastai", **quiet)
    learn.fit_one_cycle(1)
    found["batch norm"] = told(learn)

    if processes.n == 2:
        learn = vision_learner(data, **quiet)
        found["long fit"] = told(long_fit(out / "long", drawings))
        with suppress(KeyboardInterrupt):
            long_fit(out / "broken", drawings, Stop())
        found["resumed fit"] = told(long_fit(out / "broken", drawings))
        found["gradient"] = {str(n): torch_gradients(learn, n) for n in (16, 17)}
        seed = 42 + processes.rank
        other = ImageData.drawn_pets(batch_size=11, seed=seed, **options)
        try:
            vision_learner(other, **quiet)
        except ValueError as error:
            found["other data"] = str(error)
    (out / f"rank-{processes.rank}.json").write_text(json.dumps(found), encoding="utf-8")


class Stop(Callback):
    """Breaks a fit off in its second epoch, in every process."""

    def after_step(self, fit: Fit) -> None:
        """Nobody is told beforehand."""
        if fit.epoch == 1:
            raise KeyboardInterrupt


def long_fit(out: Path, drawings: Path, *callbacks: Callback) -> Learner:
    """A fit with checkpoints, which goes on from the last one."""
    options: dict[str, Any] = {"images_per_breed": 5, "pixels": 64, "size": 64, "workers": 0}
    data = join_processes().in_turn(
        lambda: ImageData.drawn_pets(batch_size=16, root=drawings, **options)
    )
    learn = vision_learner(data, path=out / "models", show_progress=False, precision="float32")
    options = {"callbacks": callbacks, "checkpoint_every": 2, "resume": True}
    learn.fit_one_cycle(3, views=1, **options)
    return learn


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
