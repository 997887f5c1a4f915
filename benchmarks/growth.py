"""What grows with the number of images, of classes, and with their side.

    nice -n 19 env OMP_NUM_THREADS=1 python benchmarks/growth.py          # about five minutes

Each row is a process of its own and one line of growth.jsonl; rows that are there are not measured
again. The images are 500 drawn ones, 128 pixels wide, and copies of them under other names. Bytes
are exact; seconds were measured on a machine that had other work, and tell the order only.
"""

import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rows import add_row, read_rows

HERE = Path(__file__).resolve().parent
ROWS = HERE / "growth.jsonl"
SIZES = (500, 2_000, 8_000)  # Images
CLASSES = (10, 100, 1_000, 10_000)
SIDES = (64, 128, 224)  # Pixels


def memory() -> int:
    """Bytes that this process has had at once, at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def copies(folder: Path, n_images: int) -> Path:
    """A folder of that many pictures."""
    from petnb import ImageData

    if not folder.is_dir():
        drawn = ImageData.drawn_pets(images_per_breed=50, pixels=128)
        folder.mkdir(parents=True)
        for number in range(n_images):
            source = Path(drawn.items["path"].iloc[number % len(drawn.items)])
            breed = source.stem.rpartition("_")[0]
            shutil.copy(source, folder / f"{breed}_{number}.jpg")
    return folder


def images(n_images: int, folder: Path) -> dict[str, Any]:
    """Read, train a head for two epochs with kept features, predict."""
    from petnb import ImageData, vision_learner
    from petnb.learner import write_model
    from petnb.transforms import epoch_batches

    copies(folder / str(n_images), n_images)
    before, start = memory(), time.perf_counter()
    data = ImageData.from_name_re(folder / str(n_images), size=64, batch_size=64, workers=0)
    found: dict[str, Any] = {"seconds_to_read": time.perf_counter() - start}
    found["bytes_of_table"] = int(data.items.memory_usage(deep=True).sum())
    found["bytes_of_order"] = int(epoch_batches(data.train).order(0).nbytes)
    learn = vision_learner(data, precision="float32", show_progress=False)
    learn.fit(2, 1e-3, views=1)
    rows = learn.recorder.rows
    found["seconds_of_first_epoch"] = rows[0]["seconds"]
    found["seconds_of_second_epoch"] = rows[1]["seconds"]
    found["bytes_of_features"] = learn.store.used
    found["n_train"], found["n_steps"] = len(data.on_side("train")), learn.n_steps
    found["bytes_of_model_file"] = write_model(learn, folder / "growth.safetensors").stat().st_size
    return found | {"bytes_more_at_most": memory() - before}


def classes(n_classes: int, folder: Path) -> dict[str, Any]:
    """A head of that many classes: what it holds, and what a step and a prediction take."""
    import torch
    from torch.nn import functional as F

    from petnb.model import linear_head

    head = linear_head(1280, n_classes)
    optimizer = torch.optim.AdamW(head.parameters())
    features, targets = torch.randn(64, 1280), torch.randint(n_classes, (64,))
    start = time.perf_counter()
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(head(features), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    weights = sum(parameter.nbytes for parameter in head.parameters())
    return {"seconds_of_step": (time.perf_counter() - start) / 5, "bytes_of_weights": weights,
            "bytes_while_learning": 4 * weights, "bytes_of_an_answer": 4 * n_classes}  # fmt: skip


def side(pixels: int, folder: Path) -> dict[str, Any]:
    """A batch at a side: seconds an image for reading, and for its features."""
    from petnb import ImageData, vision_learner
    from petnb.speed import FeatureExtractor

    data = ImageData.from_name_re(
        copies(folder / "500", 500), size=pixels, batch_size=64, workers=0
    )
    start = time.perf_counter()
    batch = next(iter(data.train))[0]
    read = (time.perf_counter() - start) / len(batch)
    learn = vision_learner(data, precision="float32", show_progress=False)
    inputs = learn.prepare(batch)
    extractor = FeatureExtractor(learn.model, inputs, "float32")
    extractor(inputs)
    start = time.perf_counter()
    extractor(inputs)
    taken = (time.perf_counter() - start) / len(batch)
    return {"seconds_to_read": read, "seconds_of_features": taken,
            "bytes_of_an_image": batch[0].nbytes}  # fmt: skip


KINDS = {"images": (images, SIZES), "classes": (classes, CLASSES), "side": (side, SIDES)}


def main() -> None:
    """Measure what is missing."""
    folder = Path.home() / ".cache" / "petnb" / "growth"
    if len(sys.argv) == 3:
        kind, number = sys.argv[1], int(sys.argv[2])
        found = KINDS[kind][0](number, folder)
        add_row(ROWS, {"kind": kind, "number": number, **found})
        return
    there = {(row["kind"], row["number"]) for row in read_rows(ROWS)}
    for kind, (_, numbers) in KINDS.items():
        for number in numbers:
            if (kind, number) not in there:
                subprocess.run([sys.executable, __file__, kind, str(number)], check=True)


if __name__ == "__main__":
    main()
