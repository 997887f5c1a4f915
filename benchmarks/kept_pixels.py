"""From a file to its pixels: decoded, from memory, and from a folder (chapter 01b).

    PETNB_PHOTOS=... python benchmarks/kept_pixels.py          # writes kept_pixels.md

On the photographs, and on sixty of them enlarged to twelve megapixels, as telephones make them. To
learn at a size of 224 a large JPEG is decoded small, at 448 or more; to check, in full, and what is
kept is the finished view. Milliseconds of the processor an image (all cores together), because
other programs ran beside it; the quickest of five. The folder is read by a second process: once
while its files are still in the system's memory, and once after they were dropped from there, so
that the disk itself has to be asked; the time for that is by the clock on the wall.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import machine
from PIL import Image

from petnb.data import open_image
from petnb.kept_pixels import PixelFolder
from petnb.transforms import ImageDataset, train_transform, valid_transform

HERE = Path(__file__).resolve().parent
TABLE = HERE / "kept_pixels.md"
SIZE, BATCH, LARGE, PIXELS = 224, 32, 60, 12_000_000


def dataset(paths: list[str], learn: bool, folder: Path | None, memory: int = 0) -> ImageDataset:
    """As a loader has it."""
    transform = train_transform(SIZE) if learn else valid_transform(SIZE)
    kept = PixelFolder(folder) if folder else None
    return ImageDataset(paths, [0] * len(paths), transform, 0, 2 * SIZE if learn else None, memory,
                        kept)  # fmt: skip


def walk(images: ImageDataset, clock: Callable[[], float] = time.process_time) -> float:
    """Milliseconds an image."""
    start = clock()
    for first in range(0, len(images), BATCH):
        images.pixels(range(first, min(first + BATCH, len(images))))
    return 1000 * (clock() - start) / len(images)


def quickest(images: ImageDataset) -> float:
    """Of five walks, after one to warm up."""
    walk(images)
    return min(walk(images) for _ in range(5))


def forget(folder: Path) -> None:
    """Drop its files from the system's memory."""
    os.sync()
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def from_disk(paths: list[str], learn: bool, folder: Path) -> None:
    """What the second process does: tell how long reading takes, with and without that memory."""
    images = dataset(paths, learn, folder)
    warm, cold = quickest(images), []
    for _ in range(5):
        forget(folder)
        cold.append(walk(images, time.perf_counter))
    print(json.dumps([warm, min(cold)]))


def row(paths: list[str], learn: bool) -> dict[str, float]:
    """All that is measured of some images."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        found = {"decoded": quickest(dataset(paths, learn, None))}
        found["from memory"] = quickest(dataset(paths, learn, None, memory=2**34))
        found["first time, with writing"] = walk(dataset(paths, learn, folder))
        told = json.dumps([paths, learn, scratch])
        command = [sys.executable, __file__, "from_disk"]
        done = subprocess.run(command, input=told, text=True, check=True, stdout=subprocess.PIPE)
        found["from the folder"], found["from the disk"] = json.loads(done.stdout)
        found["ratio"] = found["decoded"] / found["from the folder"]
        found["kB"] = sum(path.stat().st_size for path in folder.iterdir()) / len(paths) / 1000
    return found


def enlarged(photos: list[Path], folder: Path) -> Iterator[str]:
    """The same pictures in twelve megapixels."""
    for path in photos:
        picture = open_image(path)
        factor = (PIXELS / (picture.width * picture.height)) ** 0.5
        sides = (round(factor * picture.width), round(factor * picture.height))
        picture.resize(sides, Image.Resampling.BICUBIC).save(folder / path.name, quality=90)
        yield str(folder / path.name)


def main() -> None:
    """Measure and write."""
    photos = sorted(Path(os.environ["PETNB_PHOTOS"], "images").glob("*.jpg"))
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        every = len(photos) // LARGE
        sets = {f"{len(photos)} photographs": [str(path) for path in photos]}
        sets[f"{LARGE} of 12 megapixels"] = list(
            enlarged(photos[: every * LARGE : every], Path(scratch))
        )
        for name, paths in sets.items():
            for learn in (True, False):
                rows[f"{name}, to {'learn' if learn else 'check'}"] = row(paths, learn)
    columns = list(next(iter(rows.values())))
    lines = [f"# Pixels kept on disk\n\n{(__doc__ or '').strip()}\n",
             f"| | {' | '.join(columns)} |", f"|---{'|---' * len(columns)}|"]  # fmt: skip
    for name, found in rows.items():
        numbers = [f"{found[column]:.{0 if column in ('ratio', 'kB') else 2}f}"
                   for column in columns]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(numbers)} |")
    lines.append("\n`ratio`: decoded, by from the folder. `kB`: an image, in the folder.")
    lines.append(f"\nMachine: {machine.processor()}. Versions: {machine.versions()}.")
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(TABLE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    if sys.argv[1:] == ["from_disk"]:
        listed, learns, place = json.load(sys.stdin)
        from_disk(listed, learns, Path(place))
    else:
        main()
