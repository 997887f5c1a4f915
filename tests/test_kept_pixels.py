"""Pixels kept in a folder are those that would be decoded, whatever happens to folder and files."""

import os
import shutil
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from test_faults import file_limit
from torch import Tensor

from petnb import kept_pixels
from petnb.data import ImageData, open_image
from petnb.kept_pixels import PixelFolder, make_room, read_pixels, write_pixels
from petnb.transforms import ImageDataset, train_transform, valid_transform

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def data() -> ImageData:
    """40 training images of several shapes in four batches; nothing is kept in memory."""
    options: dict[str, Any] = {"size": 48, "batch_size": 10, "workers": 0, "cache_bytes": 0}
    return ImageData.drawn_pets(images_per_breed=5, pixels=96, **options)


def all_batches(data: ImageData) -> list[Tensor]:
    """Images and targets of both sides."""
    return [tensor for loader in (data.train, data.valid) for batch in loader for tensor in batch]


def kept_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_same_batches_with_and_without(data: ImageData, tmp_path: Path, workers: int) -> None:
    plain = all_batches(replace(data))
    for _ in range(2):  # The folder is empty, and then it is full
        kept = all_batches(replace(data, workers=workers, cache_folder=tmp_path))
        assert all(torch.equal(*pair) for pair in zip(plain, kept, strict=True))
        assert [one.stride() for one in plain] == [one.stride() for one in kept]
        assert len(kept_in(tmp_path)) == len(data.items)


def photograph(path: Path, color: str = "red", size: tuple[int, int] = (900, 600)) -> str:
    noise = np.random.default_rng(size[0]).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize(size)
    picture.paste(Image.new("RGB", (99, 99), color))
    picture.save(path)
    return str(path)


def dataset(path: str, folder: Path | None, at_least: int | None = None) -> ImageDataset:
    kept = PixelFolder(folder) if folder else None
    return ImageDataset([path], [0], train_transform(32), 42, at_least, folder=kept)


def pixels(path: str, folder: Path | None, at_least: int | None = None) -> Tensor:
    return dataset(path, folder, at_least).pixels([0])[0]


@pytest.mark.parametrize("change", ["content", "time", "path", "link", "size", "version", "halves"])
def test_whatever_changes_is_decoded_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    folder, at_least = tmp_path / "kept", None
    path = photograph(tmp_path / "a.jpg")
    other = photograph(tmp_path / "b.jpg", "blue")
    shutil.copystat(path, other)
    link = tmp_path / "link.jpg"
    link.symlink_to(path)
    before = pixels(str(link), folder)
    assert len(kept_in(folder)) == 1
    if change == "content":
        photograph(Path(path), "blue", (901, 600))
    elif change == "time":
        os.utime(path, (1, 1))
    elif change == "path":
        link = Path(other)
    elif change == "link":
        link.unlink()
        link.symlink_to(other)
    elif change == "size":
        at_least = 100
    elif change == "version":
        monkeypatch.setattr(kept_pixels, "decoders", lambda: "another Pillow")
    else:
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    after = pixels(str(link), folder, at_least)
    assert len(kept_in(folder)) == 2
    assert torch.equal(after, pixels(str(link), None, at_least))
    assert torch.equal(before, after) == (change in ("time", "version", "halves"))
    assert torch.equal(after, pixels(str(link), folder, at_least))


def test_checks_of_two_sizes_have_views_of_their_own(tmp_path: Path) -> None:
    path, folder = photograph(tmp_path / "a.jpg"), PixelFolder(tmp_path / "kept")
    for transform in (valid_transform(32), valid_transform(32, 1.0), valid_transform(48)) * 2:
        view = ImageDataset([path], [0], transform, 42, folder=folder)[0, 0][0]
        assert torch.equal(view, transform(open_image(path)))
    assert len(kept_in(tmp_path / "kept")) == 3


def test_a_file_that_changes_while_it_is_decoded_is_not_kept(tmp_path: Path) -> None:
    path, folder = photograph(tmp_path / "a.jpg"), PixelFolder(tmp_path / "kept")

    def changed_meanwhile() -> Tensor:
        photograph(Path(path), "blue", (901, 600))
        return torch.zeros(3, 2, 2, dtype=torch.uint8)

    folder.find(path, "at_least=None", changed_meanwhile)
    assert not (tmp_path / "kept").exists()


def test_a_part_that_another_process_deleted_is_no_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when this one was stopped for long just before it gave the file its name."""
    replace_it = os.replace

    def too_late(part: Path, path: Path) -> None:
        part.unlink()
        replace_it(part, path)

    monkeypatch.setattr(os, "replace", too_late)
    path = photograph(tmp_path / "a.jpg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(pixels(path, tmp_path / "kept"), pixels(path, None))
    assert kept_in(tmp_path / "kept") == {}


def spoilt(content: bytes) -> dict[str, bytes]:
    header, array = content[:128], content[128:]
    return {
        "empty": b"",
        "cut": content[:-1],
        "header only": header,
        "half a header": content[:60],
        "zeros": bytes(len(content)),
        "a zip": b"PK\x03\x04" + content[4:],
        "a pickle": b"\x80\x04N.",
        "floats": header.replace(b"|u1", b"<f4") + array * 4,
        "objects": header.replace(b"'|u1'", b"'|O' ") + array,
        "two colours": header.replace(b", 3)", b", 2)") + array,
        "one dimension": header.replace(b"(600, 900, 3)", b"(1620000,)   ") + array,
        "enormous": header.replace(b"(600, ", b"(60000") + array,
    }


@pytest.mark.parametrize("fault", list(spoilt(b"")))
def test_a_damaged_file_is_reported_and_replaced(tmp_path: Path, fault: str) -> None:
    path, folder = photograph(tmp_path / "a.jpg"), tmp_path / "kept"
    whole = pixels(path, folder)
    [(name, content)] = kept_in(folder).items()
    (folder / name).write_bytes(spoilt(content)[fault])
    with pytest.warns(UserWarning, match=rf"{name} is damaged \(.*its image is decoded anew"):
        assert torch.equal(pixels(path, folder), whole)
    assert kept_in(folder) == {name: content}


def test_a_full_disk_is_said_once_and_ends_nothing(data: ImageData, tmp_path: Path) -> None:
    plain = all_batches(replace(data))
    with warnings.catch_warnings(record=True) as caught, file_limit(5000):
        warnings.simplefilter("default")
        kept = all_batches(replace(data, cache_folder=tmp_path))
    assert all(torch.equal(*pair) for pair in zip(plain, kept, strict=True))
    told = {str(one.message) for one in caught}
    assert len(told) == 1
    assert f"no longer kept in {tmp_path}: File too large. The training goes on" in told.pop()
    assert kept_in(tmp_path) == {}


def test_a_folder_that_nobody_may_write_is_still_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Played, since whoever tests may be root, who may write everywhere."""
    first, second = (photograph(tmp_path / name) for name in ("a.jpg", "b.jpg"))
    folder, plain = tmp_path / "kept", pixels(first, tmp_path / "kept")

    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    for name in ("utime", "replace", "unlink"):
        monkeypatch.setattr(os, name, refused)
    monkeypatch.setattr(Path, "write_bytes", refused)
    monkeypatch.setattr(ImageDataset, "decode", lambda *_: pytest.fail("it was decoded"))
    assert torch.equal(pixels(first, folder), plain)
    monkeypatch.undo()
    monkeypatch.setattr(Path, "write_bytes", refused)
    with pytest.warns(UserWarning, match="Permission denied. The training goes on"):
        assert torch.equal(pixels(second, folder), plain)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_the_budget_holds_and_what_is_used_stays(tmp_path: Path) -> None:
    one = torch.zeros(3, 10, 10, dtype=torch.uint8)
    folder, tiny = PixelFolder(tmp_path / "kept", 5000), PixelFolder(tmp_path / "kept", 299)
    often = photograph(tmp_path / "often.jpg")
    (tmp_path / "kept").mkdir()
    left_over = tmp_path / "kept" / "killed.npy.0.part"
    left_over.write_bytes(bytes(900))
    os.utime(left_over, (1, 1))
    for place in range(30):
        folder.find(often, f"{place}", one.clone)
        kept = folder.find(often, "always", one.clone)
        for path in (tmp_path / "kept").iterdir():  # Clocks are coarse: let all grow older
            os.utime(path, ns=(0, path.stat().st_mtime_ns - 10**9))
        assert torch.equal(kept, one)
        assert size_of(tmp_path / "kept") <= 5000
    assert not left_over.exists()
    folder.find(often, "always", lambda: pytest.fail("it was used all the time"))
    before = kept_in(tmp_path / "kept")
    assert tiny.find(often, "too large", one.clone) is not None
    assert kept_in(tmp_path / "kept") == before
    assert len(make_room(tmp_path / "kept", 0, "*.npy*")) == len(before)


CHILD = """
import sys
import torch
from petnb.kept_pixels import PixelFolder
image, folder, n = sys.argv[1], PixelFolder(sys.argv[2], int(sys.argv[3])), int(sys.argv[4])
print("ready", flush=True)
sys.stdin.readline()
for again in range(n):
    for place in range(20):
        picture = torch.full((3, 50, 50), place, dtype=torch.uint8)
        assert torch.equal(folder.find(image, f"{place}", picture.clone), picture)
    if n > 100:
        for path in folder.folder.glob("*.npy"):
            path.unlink(missing_ok=True)
"""


def child(*arguments: Any) -> subprocess.Popen[str]:
    """A process that imports everything and waits for a line."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-c", CHILD, *map(str, arguments)]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, env=environment, text=True, **pipes)


def begin(*children: subprocess.Popen[str]) -> None:
    """Let them go on, all at once."""
    for one in children:
        assert one.stdout
        assert one.stdout.readline() == "ready\n"
    for one in children:
        assert one.stdin
        one.stdin.write("\n")
        one.stdin.flush()


def test_two_processes_at_once_and_too_little_room(tmp_path: Path) -> None:
    """They delete each other's files all the time, and neither warns or sees a wrong picture."""
    image, folder = photograph(tmp_path / "a.jpg"), tmp_path / "kept"
    several = [child(image, folder, 60_000, 30) for _ in range(2)]
    begin(*several)
    errors = [one.communicate()[1] for one in several]
    assert errors == ["", ""]
    assert [one.returncode for one in several] == [0, 0]
    assert size_of(folder) <= 60_000 + 2 * 7628  # One file each that the other had not counted
    assert not list(folder.glob("*.part"))


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is Unix's")
def test_a_kill_leaves_whole_pictures_only(tmp_path: Path) -> None:
    image, folder = photograph(tmp_path / "a.jpg"), tmp_path / "kept"
    running = child(image, folder, 10**9, 10**6)
    begin(running)
    while not (folder.exists() and any(folder.iterdir())):
        assert running.poll() is None
    running.send_signal(signal.SIGKILL)
    running.communicate()
    for path in folder.glob("*.npy"):
        picture = read_pixels(path)
        assert picture is not None
        assert len(np.unique(picture.numpy())) == 1
    write_pixels(folder / f"{'0' * 32}.npy", torch.zeros(3, 4, 4, dtype=torch.uint8))
    assert make_room(folder, 0, "*.npy*")
    assert list(folder.iterdir()) == []
