"""Real bad files, made here: what `open_image`, `image_files` and the doctor do with them.

The numbers in the names of the sections are those of the rows of the project's list of faults.
"""

import os
import pickle
import shutil
import sqlite3
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw, ImageFilter

import petnb.doctor
from petnb.data import ImageData, ImageError, glance, image_files, open_image
from petnb.doctor import BROKEN, CHANGES, ODD, Checkup, measure, plant_faults, similar_pairs

FILES_OPEN = Path("/proc/self/fd")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETNB_HOME", str(tmp_path_factory.mktemp("home")))


def picture(seed: int = 0, size: tuple[int, int] = (120, 90)) -> Image.Image:
    """Coloured noise with some order, sharp and like no other."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    fine = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    return Image.blend(coarse.resize(size, Image.Resampling.BICUBIC), fine, 0.2)


def save(path: Path, seed: int = 0) -> Path:
    """A good JPEG at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed).save(path, quality=95)
    return path


def reason(path: Path) -> str:
    """Why the file cannot be decoded; that `measure` agrees is checked on the way."""
    with pytest.raises(ImageError) as caught:
        open_image(path)
    assert str(path) in str(caught.value)
    assert measure(path).reason == caught.value.reason
    return caught.value.reason


def two_classes(root: Path, each: int = 4) -> Path:
    """A folder of two classes of good photographs, all of them different."""
    for number in range(2 * each):
        save(root / ("pug" if number < each else "beagle") / f"{number}.jpg", number)
    return root


def findings(checkup: Checkup) -> set[tuple[str, str]]:
    """File name and finding of each row about a file."""
    about = checkup.table[checkup.table["path"] != ""]
    names = [Path(path).name for path in about["path"]]
    return set(zip(names, about["finding"], strict=True))


# -- 1, 2, 3: empty, cut off, damaged, no image at all ---------------------------------------------


def test_empty_and_cut_off_files_are_named_with_the_reason(tmp_path: Path) -> None:
    content = save(tmp_path / "good.jpg").read_bytes()
    for name, cut in {"empty": 0, "header": 60, "half": len(content) // 2}.items():
        path = tmp_path / f"{name}.jpg"
        path.write_bytes(content[:cut])
        said = reason(path)
        assert ("empty" if name == "empty" else "too early") in said or "header is damaged" in said
        assert glance(path) == said


def test_cut_off_at_any_length_is_seen_at_a_glance(tmp_path: Path) -> None:
    for suffix in (".jpg", ".png", ".gif", ".webp"):
        whole = tmp_path / f"whole{suffix}"
        picture().save(whole)
        assert glance(whole) is None
        content = whole.read_bytes()
        for share in (0.05, 0.3, 0.6, 0.95):
            path = tmp_path / f"cut{suffix}"
            path.write_bytes(content[: int(len(content) * share)])
            assert glance(path), (suffix, share)


def test_what_follows_the_end_of_an_image_does_no_harm(tmp_path: Path) -> None:
    path = save(tmp_path / "1.jpg")
    path.write_bytes(path.read_bytes() + b"motion picture" * 1000)
    assert glance(path) is None
    assert not measure(path).reason


def test_a_piece_of_another_file_in_the_middle_is_found_by_the_check(tmp_path: Path) -> None:
    root = two_classes(tmp_path)
    path = root / "pug" / "1.jpg"
    content = path.read_bytes()
    path.write_bytes(BROKEN["damaged"](content))
    data = ImageData.from_folder(root)
    checkup = data.check()
    assert ("1.jpg", "cannot be decoded") in findings(checkup)
    assert "it is damaged" in checkup.of("cannot be decoded").table["reason"][0]
    assert path.stat().st_size == len(content)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><html><body>404</body></html>", "HTML page"),
        (b"\xef\xbb\xbf\n  <HTML lang=en>", "HTML page"),
        (b"<!-- cached --><html>", "HTML page"),
        (b'{"error": "not found"}', "text, not an image"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"\x00\x01\x02\x03 nothing known", "no image"),
    ],
)
def test_what_is_no_image_says_what_it_is(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "1.jpg"
    path.write_bytes(content)
    assert words in reason(path)
    assert words in str(glance(path))


def test_a_missing_file_is_missing_and_not_undecodable(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_image(tmp_path / "none.jpg")
    assert glance(tmp_path / "none.jpg") == "no such file or directory"
    (tmp_path / "circle.jpg").symlink_to(tmp_path / "circle.jpg")
    assert "symbolic links" in str(glance(tmp_path / "circle.jpg"))


def test_an_error_travels_between_processes(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").touch()
    with pytest.raises(ImageError) as caught:
        open_image(tmp_path / "1.jpg")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.path, again.reason) == (
        str(caught.value), str(tmp_path / "1.jpg"), "the file is empty (0 bytes)",
    )  # fmt: skip
    assert str(ImageError("as a loader's worker raises it again")).startswith("as a loader's")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow of damaged tags
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_whatever_is_done_to_a_file_it_opens_or_is_named(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(7)
    path = tmp_path / "1.img"
    picture(size=(40, 30)).save(path, kind)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    fates = set()
    for _ in range(100):
        content = whole.copy()
        places = rng.integers(0, min(len(whole), rng.choice([60, 400, 10**6])), 5)
        content[places] = rng.integers(0, 256, 5)
        path.write_bytes(content.tobytes()[: rng.integers(len(whole) // 2, 2 * len(whole))])
        noted = measure(path)
        try:
            assert open_image(path).mode == "RGB"
        except ImageError as error:
            fates.add(error.reason != "" and error.reason == noted.reason)
        else:
            fates.add(noted.reason == "" == (glance(path) or ""))
    assert fates == {True}


# -- On building: raise, skip, ignore --------------------------------------------------------------


def spoilt(root: Path) -> dict[str, bytes]:
    """Two classes with three bad files; the content of every file."""
    two_classes(root, 6)
    (root / "pug" / "0.jpg").write_bytes(b"")
    (root / "pug" / "1.jpg").write_bytes(b"<html>")
    half = (root / "beagle" / "8.jpg").read_bytes()
    (root / "beagle" / "8.jpg").write_bytes(half[: len(half) // 2])
    return {str(path): path.read_bytes() for path in root.rglob("*.jpg")}


def test_bad_files_stop_the_building_with_one_list(tmp_path: Path) -> None:
    spoilt(tmp_path)
    with pytest.raises(ValueError, match="3 of 12 files") as caught:
        ImageData.from_folder(tmp_path)
    for name, why in [("0.jpg", "empty"), ("1.jpg", "HTML"), ("8.jpg", "too early")]:
        assert any(name in line and why in line for line in str(caught.value).splitlines())


def test_skipped_files_are_counted_listed_and_untouched(tmp_path: Path) -> None:
    before = spoilt(tmp_path)
    data = ImageData.from_folder(tmp_path, on_bad="skip")
    assert len(data.items) == 9
    assert {Path(path).name for path in data.left_out["path"]} == {"0.jpg", "1.jpg", "8.jpg"}
    assert all(data.left_out["reason"])
    assert sum("left out" in note for note in data.notes) == 3
    assert {str(path): path.read_bytes() for path in tmp_path.rglob("*.jpg")} == before
    assert {f"{number}.jpg" for number in (0, 1, 8)} == {
        name for name, finding in findings(data.check()) if finding == "left out"
    }


def test_labels_stay_with_their_files_when_some_are_skipped(tmp_path: Path) -> None:
    spoilt(tmp_path)
    data = ImageData.from_folder(tmp_path, on_bad="skip")
    assert [Path(path).parent.name for path in data.items["path"]] == list(data.items["label"])


def test_ignored_files_are_not_opened(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.jpg" for number in range(10)]
    data = ImageData.from_lists(paths, ["a", "b"] * 5, on_bad="ignore")
    assert len(data.items) == 10
    assert data.check().counts().to_dict() == {"cannot be decoded": 10, "rare class": 2}


def test_another_word_for_on_bad_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'substitute'.*raise, skip, ignore"):
        ImageData.from_lists(["a", "b"], ["a", "b"], on_bad="substitute")  # type: ignore[arg-type]


# -- 4 to 7, 9: kinds of pixels --------------------------------------------------------------------


def test_cmyk_golden_values(tmp_path: Path) -> None:
    inks = [(255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0), (0, 0, 0, 255), (0, 0, 0, 0)]
    image = Image.new("CMYK", (5 * 16, 16))
    for place, ink in enumerate(inks):
        image.paste(ink, (place * 16, 0, place * 16 + 16, 16))
    image.save(tmp_path / "1.tif")
    image.save(tmp_path / "1.jpg", quality=100, subsampling=0)
    golden = [(0, 255, 255), (255, 0, 255), (255, 255, 0), (0, 0, 0), (255, 255, 255)]
    for name, tolerance in (("1.tif", 0), ("1.jpg", 2)):
        opened = open_image(tmp_path / name)
        seen = np.asarray(opened, dtype=int)[8, 8::16]
        assert np.abs(seen - golden).max() <= tolerance


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_are_scaled_by_their_depth(tmp_path: Path, suffix: str) -> None:
    deep = np.linspace(0, 65535, 256).round().astype(np.uint16)
    path = tmp_path / f"deep{suffix}"
    Image.fromarray(np.tile(deep, (4, 1))).save(path)
    seen = np.asarray(open_image(path))[0, :, 0]
    assert np.array_equal(seen, np.arange(256))


def test_12_bits_in_a_tiff_are_scaled_by_12(tmp_path: Path) -> None:
    path = tmp_path / "deep.tif"
    Image.fromarray(np.full((4, 4), 65535, np.uint16)).save(path)
    content = bytearray(path.read_bytes())
    entry = content.index(b"\x02\x01\x03\x00\x01\x00\x00\x00\x10\x00")  # BitsPerSample: 16
    content[entry + 8] = 12
    path.write_bytes(content)
    assert open_image(path).getpixel((1, 1)) == (255, 255, 255)


def test_floats_beyond_one_are_refused_with_their_range(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "good.tif")
    assert open_image(tmp_path / "good.tif").getpixel((0, 0)) == (128, 128, 128)
    Image.fromarray(np.full((4, 4), 900, np.float32)).save(tmp_path / "bad.tif")
    assert "from 900 to 900" in reason(tmp_path / "bad.tif")


def test_transparency_is_laid_on_the_background(tmp_path: Path) -> None:
    rgba = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    rgba.paste((200, 0, 0, 128), (4, 0, 8, 8))
    rgba.save(tmp_path / "alpha.png")
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 0, 0, 255])
    palette.paste(0, (4, 0, 8, 8))
    palette.save(tmp_path / "palette.png", transparency=1)
    palette.save(tmp_path / "palette.gif", transparency=1)
    Image.new("LA", (8, 8), (7, 0)).save(tmp_path / "grey.png")
    for name in ("alpha.png", "palette.png", "palette.gif", "grey.png"):
        assert open_image(tmp_path / name).getpixel((1, 1)) == (255, 255, 255)
        assert open_image(tmp_path / name, background="#00ff00").getpixel((1, 1)) == (0, 255, 0)
        assert measure(tmp_path / name).transparent
    assert open_image(tmp_path / "alpha.png").getpixel((6, 1)) == (227, 127, 127)
    assert open_image(tmp_path / "palette.png").getpixel((6, 1)) == (0, 0, 0)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_an_animation_gives_its_first_frame_and_its_count(tmp_path: Path, suffix: str) -> None:
    root = two_classes(tmp_path)
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "lime", "blue")]
    path = root / "pug" / f"moves{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, lossless=True)
    assert open_image(path).getpixel((3, 3)) == (255, 0, 0)
    table = ImageData.from_folder(root).check().of("animated").table
    assert table[["path", "reason"]].to_numpy().tolist() == [[str(path), "3 frames"]]


@pytest.mark.skipif(not FILES_OPEN.is_dir(), reason="no list of open files on this system")
def test_no_file_is_left_open(tmp_path: Path) -> None:
    frames = [picture(seed) for seed in range(3)]
    frames[0].save(tmp_path / "1.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "2.gif").write_bytes((tmp_path / "1.gif").read_bytes()[:2000])
    kept = []
    for name in ("1.gif", "2.gif"):
        glance(tmp_path / name)
        measure(tmp_path / name)
        with suppress(ImageError):
            kept.append(open_image(tmp_path / name))
    opened = {os.path.realpath(link) for link in FILES_OPEN.iterdir()}
    assert not {str(tmp_path / "1.gif"), str(tmp_path / "2.gif")} & opened


@pytest.mark.parametrize("mode", ["RGB", "L", "I;16", "RGBA"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_stands_upright(tmp_path: Path, mode: str, orientation: int) -> None:
    """A bright corner, upper left when upright, wherever the camera stored it."""
    top = 65535 if mode == "I;16" else 255
    upright = np.zeros((20, 30), np.uint16 if mode == "I;16" else np.uint8)
    upright[:5, :5] = top
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.T, 6: np.rot90(upright), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    image = Image.fromarray(np.ascontiguousarray(stored))
    image = image if mode in ("L", "I;16") else image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "1.png", exif=exif)
    opened = open_image(tmp_path / "1.png")
    assert opened.size == (30, 20)
    assert opened.getpixel((1, 1)) == (255, 255, 255)
    assert opened.getpixel((28, 18)) == (0, 0, 0)


@pytest.mark.parametrize("at_least", [None, 224])
def test_a_photograph_decoded_small_stands_upright_too(
    tmp_path: Path, at_least: int | None
) -> None:
    stored = Image.new("RGB", (2000, 1500), "navy")
    stored.paste("white", (0, 0, 400, 400))
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(tmp_path / "1.jpg", exif=exif)
    opened = open_image(tmp_path / "1.jpg", at_least)
    width, height = opened.size
    assert width * 4 == height * 3
    assert min(opened.getpixel((width - 5, 5))) > 250  # type: ignore[arg-type]
    assert max(opened.size) == 2000 if at_least is None else 224 <= min(opened.size) < 448


# -- 8: HEIC ---------------------------------------------------------------------------------------


def test_heic_is_counted_and_says_what_it_needs(tmp_path: Path) -> None:
    root = two_classes(tmp_path)
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500)
    (root / "pug" / "IMG_1.HEIC").write_bytes(heic)
    data = ImageData.from_folder(root)
    assert len(data.items) == 8
    assert any("pillow-heif: 1 (IMG_1.HEIC)" in note for note in data.notes)
    assert ("IMG_1.HEIC", "left out") in findings(data.check())
    (root / "pug" / "renamed.jpg").write_bytes(heic)
    assert "needs pillow-heif" in reason(root / "pug" / "renamed.jpg")


def test_a_folder_of_heic_alone_says_so(tmp_path: Path) -> None:
    (tmp_path / "1.heic").touch()
    with pytest.raises(FileNotFoundError, match=r"endings looked for.*pillow-heif: 1 \(1.heic\)"):
        image_files(tmp_path)


def test_heic_is_taken_once_a_plug_in_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "1.heic").touch()
    monkeypatch.setitem(Image.EXTENSION, ".heic", "HEIF")
    assert [path.name for path in image_files(tmp_path)] == ["1.heic"]


# -- 10: too many pixels ---------------------------------------------------------------------------


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    root = two_classes(tmp_path)
    path = root / "pug" / "bomb.png"
    path.write_bytes(BROKEN["too many pixels"](b""))
    content = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = ImageData.from_folder(root, on_bad="skip")
    assert list(data.left_out["path"]) == [str(path)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        assert "over the cap of 89,478,485" in reason(path)
        path.write_bytes(content[:200])  # Nothing to decode: only the header can tell
        assert "too large: 10000 x 10000" in reason(path)


def test_a_bomb_that_pillow_refuses_by_itself_is_too_large_and_not_damaged(tmp_path: Path) -> None:
    """Over twice the cap Pillow raises an error of its own while it reads the header."""
    root = two_classes(tmp_path)
    (root / "pug" / "bomb.pgm.png").write_bytes(b"P5 20000 20000 255\n")
    assert reason(root / "pug" / "bomb.pgm.png").startswith("too large: over twice the cap of 89,4")
    checkup = ImageData.from_folder(root, on_bad="ignore").check()
    assert ("bomb.pgm.png", "too large") in findings(checkup)
    with pytest.raises(ValueError, match="too large: over twice the cap"):
        ImageData.from_folder(root)


def test_the_cap_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = two_classes(tmp_path)
    data = ImageData.from_folder(root)
    assert "too large" not in data.check().counts()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 120 * 90 - 1)
    assert data.check().counts()["too large"] == 8  # What was kept from the first check is void
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert open_image(root / "pug" / "1.jpg").size == (120, 90)


# -- 11: odd pictures ------------------------------------------------------------------------------


def test_each_oddity_is_found_and_nothing_else(tmp_path: Path) -> None:
    root = two_classes(tmp_path)
    odd = {
        "tiny": Image.new("RGB", (1, 1), "red"),
        "extreme shape": picture(20, (4000, 100)),
        "nearly black": picture(21).point(lambda level: level // 50),
        "nearly white": picture(22).point(lambda level: 250 + level // 60),
        "blurred": picture(23, (400, 300)).filter(ImageFilter.GaussianBlur(12)),
        "grey": picture(24).convert("L"),
    }
    for finding, image in odd.items():
        image.save(root / "pug" / f"{finding}.png")
    data = ImageData.from_folder(root)
    assert findings(data.check()) == {(f"{finding}.png", finding) for finding in odd}


def test_a_line_of_pixels_is_measured_too(tmp_path: Path) -> None:
    for size in ((4000, 1), (1, 4000), (2, 2)):
        Image.new("RGB", size, "white").save(tmp_path / "1.png")
        assert not measure(tmp_path / "1.png").reason


def test_grey_is_not_odd_where_all_are_grey(tmp_path: Path) -> None:
    for number in range(8):
        folder = tmp_path / ("pug" if number < 4 else "beagle")
        folder.mkdir(exist_ok=True)
        picture(number).convert("L").save(folder / f"{number}.png")
    assert "grey" not in ImageData.from_folder(tmp_path).check().counts()


# -- 12: duplicates and leaks ----------------------------------------------------------------------


def test_twins_across_the_split_are_leaks_and_in_one_group(tmp_path: Path) -> None:
    root = two_classes(tmp_path, 6)
    data = ImageData.from_folder(root)
    train, valid = data.on_side("train")["path"], data.on_side("valid")["path"]
    shutil.copy(train[0], valid[0])  # Exact
    picture(int(Path(train[1]).stem)).resize((300, 225)).save(valid[1], quality=50)  # Near
    checkup = data.check()
    leaks = checkup.of("leak").table
    found = set(leaks[["path", "twin"]].itertuples(index=False, name=None))
    assert found == {(valid[0], train[0]), (valid[1], train[1])}
    group = dict(zip(data.items["path"], checkup.groups, strict=True))
    assert group[valid[0]] == group[train[0]] != group[valid[1]] == group[train[1]]
    assert len(set(group.values())) == 10


def test_one_picture_under_two_labels(tmp_path: Path) -> None:
    root = two_classes(tmp_path)
    shutil.copy(root / "pug" / "1.jpg", root / "beagle" / "copy.jpg")
    table = ImageData.from_folder(root).check().of("two labels").table
    assert len(table) == 1
    assert "'pug'" in table["reason"][0]
    assert "'beagle'" in table["reason"][0]


def test_links_lead_to_one_group_and_pairs_do_not_depend_on_blocks() -> None:
    rng = np.random.default_rng(0)
    stamps = rng.integers(0, 256, (9, 17, 17), dtype=np.uint8)
    stamps[7], stamps[4] = stamps[2], stamps[2, :, ::-1]
    whole = similar_pairs(stamps)
    assert [pair[:2] for pair in whole] == [(2, 4), (2, 7), (4, 7)]
    assert [pair[:2] for pair in similar_pairs(stamps, rows=2)] == [pair[:2] for pair in whole]


def test_flat_pictures_are_nobody_s_twins(tmp_path: Path) -> None:
    root = two_classes(tmp_path)
    for number, level in enumerate((1, 2, 3)):
        Image.new("RGB", (60 + number, 60), (level,) * 3).save(root / "pug" / f"black{number}.png")
    assert "near duplicate" not in ImageData.from_folder(root).check().counts()


# -- 13, 20, 38: hostile names ---------------------------------------------------------------------

HOSTILE = [
    "<script>alert(1)</script>", "a&b", "$x_1$", '"quoted"', "it's", "=cmd|1", "-dash",
    "two\nlines", "mit Ümläut 犬", "<img src=x onerror=alert(1)>", "a,b;c",
]  # fmt: skip


class Tags(HTMLParser):
    """Collects the tags of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)


def hostile_data(root: Path) -> ImageData:
    """Each hostile name as a file's and a class's, learnt from and, as a copy, held out."""
    for number, name in enumerate(HOSTILE):
        folder = root / name.replace("/", "∕")
        save(folder / f"{name.replace('/', '∕')}.jpg", number)
        (folder / f"{name.replace('/', '∕')} twin.jpg").write_bytes(
            (folder / f"{name.replace('/', '∕')}.jpg").read_bytes()
        )
    return ImageData.from_folder(root, valid=range(0, 2 * len(HOSTILE), 2))


def test_hostile_names_are_text_in_the_display(tmp_path: Path) -> None:
    checkup = hostile_data(tmp_path).check()
    assert checkup.counts()["exact duplicate"] == len(HOSTILE)
    for one in (checkup, checkup.of("exact duplicate"), checkup.of("rare class")):
        page = one._repr_html_()
        assert Tags(page).seen <= {"table", "thead", "tbody", "tr", "th", "td", "p", "code"}
        page.encode("utf-8")
    assert "&lt;script&gt;" in checkup._repr_html_()
    assert "script" in Tags("<script>").seen  # The test would see one


def test_hostile_names_survive_a_csv_file(tmp_path: Path) -> None:
    checkup = hostile_data(tmp_path / "pets").check()
    checkup.to_csv(tmp_path / "findings.csv")
    again = pd.read_csv(tmp_path / "findings.csv", keep_default_na=False)
    assert again.to_numpy().tolist() == checkup.table.to_numpy().tolist()


def test_hostile_names_are_drawn(tmp_path: Path) -> None:
    checkup = hostile_data(tmp_path).check()
    grid = checkup.show(3)
    assert [axes.get_title().split("\n")[0] for axes in grid.flat][:2] == ["leak", "its twin"]
    grid.flat[0].figure.canvas.draw()


@pytest.mark.skipif(os.name == "nt" or os.uname().sysname == "Darwin", reason="names are text here")
def test_a_name_of_bytes_that_are_no_text(tmp_path: Path) -> None:
    root = two_classes(tmp_path)
    name = os.fsdecode(b"caf\xe9.jpg")
    Image.new("RGB", (9, 9)).save(tmp_path / "tiny.jpg")
    (tmp_path / "tiny.jpg").rename(root / "pug" / name)
    for _ in range(2):  # The second reads what the first kept
        checkup = ImageData.from_folder(root).check()
        assert (name, "tiny") in findings(checkup)
        assert "caf\\udce9.jpg" in checkup._repr_html_()
        checkup._repr_html_().encode("utf-8")
        checkup.to_csv(tmp_path / "findings.csv")
        assert b"caf\xe9.jpg" in (tmp_path / "findings.csv").read_bytes()


# -- 14, 15, 19: trees -----------------------------------------------------------------------------


def test_hidden_files_and_folders_are_left_out_and_counted(tmp_path: Path) -> None:
    root = two_classes(tmp_path)
    save(root / "pug" / ".ipynb_checkpoints" / "1-checkpoint.jpg")
    save(root / ".trash" / "deep" / "2.jpg")
    (root / "pug" / "._1.jpg").write_bytes(b"resource fork")
    (root / "pug" / ".DS_Store").touch()
    files = image_files(root)
    assert len(files) == 8
    assert [(path.name, why) for path, why in files.left_out] == [
        (".trash", "hidden"), ("._1.jpg", "hidden"), (".ipynb_checkpoints", "hidden"),
    ]  # fmt: skip
    assert any("hidden: 3" in note for note in ImageData.from_folder(root).notes)


def test_a_hidden_root_is_the_users_choice(tmp_path: Path) -> None:
    assert len(image_files(two_classes(tmp_path / ".hidden"))) == 8


def test_circles_of_links_are_walked_once(tmp_path: Path) -> None:
    root = two_classes(tmp_path / "pets")
    (root / "pug" / "loop").symlink_to(root, target_is_directory=True)
    (root / "a").symlink_to(root / "pug", target_is_directory=True)
    (root / "up").symlink_to(tmp_path, target_is_directory=True)
    files = image_files(root)
    assert {path.parent.name for path in files} == {"pug", "beagle"}  # Under their own names
    assert len(files) == 8
    assert {path.name for path, _ in files.left_out} == {"loop", "a", "up"}
    assert sum("a link to a folder" in note for note in ImageData.from_folder(root).notes) == 2


def test_links_to_folders_elsewhere_are_followed(tmp_path: Path) -> None:
    two_classes(tmp_path / "elsewhere")
    (tmp_path / "pets").mkdir()
    for name in ("pug", "beagle"):
        (tmp_path / "pets" / name).symlink_to(tmp_path / "elsewhere" / name)
    data = ImageData.from_folder(tmp_path / "pets")
    assert data.vocab == ["beagle", "pug"]
    assert len(data.items) == 8


def test_an_empty_folder_names_path_and_endings(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"\.jpeg \.jpg \.png") as caught:
        image_files(tmp_path)
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(FileNotFoundError, match="not a folder"):
        image_files(tmp_path / "none")


# -- The cache -------------------------------------------------------------------------------------


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that the doctor measures from now on."""
    seen: list[str] = []

    def measured(path: str) -> object:
        seen.append(Path(path).name)
        return measure(path)

    monkeypatch.setattr(petnb.doctor, "measure", measured)
    return seen


def test_only_changed_files_are_looked_at_anew(tmp_path: Path, looked_at: list[str]) -> None:
    data = ImageData.from_folder(two_classes(tmp_path))
    first = data.check()
    assert sorted(looked_at) == sorted(f"{number}.jpg" for number in range(8))
    looked_at.clear()
    assert data.check().table.equals(first.table)
    assert looked_at == []
    path = tmp_path / "pug" / "1.jpg"
    same_size = path.read_bytes()
    path.write_bytes(same_size[::-1])
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert ("1.jpg", "cannot be decoded") in findings(data.check())
    assert looked_at == ["1.jpg"]
    path.write_bytes(same_size)
    assert ("1.jpg", "cannot be decoded") not in findings(data.check())


def test_nothing_is_written_beside_the_data(tmp_path: Path) -> None:
    root = two_classes(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    ImageData.from_folder(root).check()
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_without_keeping_every_file_is_looked_at(tmp_path: Path, looked_at: list[str]) -> None:
    data = ImageData.from_folder(two_classes(tmp_path))
    data.check(keep=False)
    data.check(keep=False)
    assert len(looked_at) == 16


@pytest.mark.parametrize("trouble", ["a file in its place", "no database"])
def test_a_cache_that_cannot_be_used_is_a_note_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    home = tmp_path / "home"
    if trouble == "no database":
        home.mkdir()
        (home / "doctor.sqlite").write_bytes(b"no database" * 100)
    else:
        home.touch()
    monkeypatch.setenv("PETNB_HOME", str(home))
    checkup = ImageData.from_folder(two_classes(tmp_path / "pets")).check()
    assert any("nothing was kept" in note for note in checkup.notes)


def test_a_check_that_was_stopped_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looked_at: list[str]
) -> None:
    data = ImageData.from_folder(two_classes(tmp_path))

    def power_cut(iterable: Iterable[Any], *arguments: Any) -> Iterator[Any]:
        for number, item in enumerate(iterable):
            if number == 5:
                raise KeyboardInterrupt
            yield item

    with monkeypatch.context() as patch:
        patch.setattr(petnb.doctor, "progress_bar", power_cut)
        with pytest.raises(KeyboardInterrupt):
            data.check(threads=1)
    with sqlite3.connect(Path(os.environ["PETNB_HOME"]) / "doctor.sqlite") as ledger:
        assert ledger.execute("select count(*) from measured").fetchone() == (5,)
    looked_at.clear()
    data.check()
    assert len(looked_at) == 3


# -- Planted faults --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawn")
    ImageData.drawn_pets(images_per_breed=8, pixels=128, root=root, on_bad="ignore")
    return root / "images"


def test_planting_is_repeatable_and_spares_the_source(drawn: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in drawn.iterdir()}
    one, two = (plant_faults(drawn, tmp_path / name, seed=3) for name in ("one", "two"))
    assert [Path(path).name for path in one["path"]] == [Path(path).name for path in two["path"]]
    assert one["fault"].equals(two["fault"])
    other = plant_faults(drawn, tmp_path / "other", seed=4)
    assert [Path(path).name for path in one["path"]] != [Path(path).name for path in other["path"]]
    assert {path.name: path.read_bytes() for path in drawn.iterdir()} == before
    with pytest.raises(FileExistsError):
        plant_faults(drawn, tmp_path / "one")


def test_more_faults_than_pictures_are_refused(drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="190 faults need as many pictures"):
        plant_faults(drawn, tmp_path / "one", each=10)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_faults_are_all_found_and_nothing_else(
    drawn: Path, tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = plant_faults(drawn, tmp_path / "ill", seed, each=2)
    data = ImageData.from_name_re(tmp_path / "ill", on_bad="ignore")
    table = data.check().table
    expected = dict.fromkeys(BROKEN, "cannot be decoded") | {odd: odd for odd in ODD}
    expected |= {"a strip": "extreme shape", "too many pixels": "too large"}
    single = truth[truth["fault"].isin(list(expected))]
    wanted = set(zip(single["path"], single["fault"].map(expected), strict=True))
    found = set(zip(table["path"], table["finding"], strict=True))
    also_tiny = {(path, "tiny") for path in single.loc[single["fault"] == "a strip", "path"]}
    assert {pair for pair in found if pair[1] in expected.values()} - also_tiny == wanted
    twins = truth[truth["original"] != ""]
    for kind in ("exact duplicate", "near duplicate"):
        rows, planted = table[table["finding"] == kind], twins[twins["fault"] == kind]
        pairs = {frozenset((row.path, row.twin)) for row in rows.itertuples()}
        assert pairs == {frozenset((row.path, row.original)) for row in planted.itertuples()}
    with capsys.disabled():
        print(f"\nseed {seed}: {len(wanted)} faults and {len(twins)} twins, precision and recall 1")


# -- Photographs -----------------------------------------------------------------------------------


def test_photographs_are_healthy_and_quickly_checked(
    photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ImageData.oxford_pets(photographs)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        checkup = data.check()
        seconds.append(time.perf_counter() - start)
    with capsys.disabled():
        print(f"\n{len(data.items)} photographs: {seconds[0]:.1f} s, then {seconds[1]:.2f} s")
    assert set(checkup.counts().index) <= {"near duplicate", "leak", "rare class", "uneven classes"}
    near = checkup.of("near duplicate").table
    assert {Path(path).name for path in [*near["path"], *near["twin"]]} == {
        "Abyssinian_151.jpg", "Abyssinian_99.jpg",
    }  # fmt: skip


def test_changed_copies_of_photographs_are_recognised(photographs: Path, tmp_path: Path) -> None:
    files = sorted((photographs / "images").glob("*.jpg"))[::30]
    stamps = [petnb.doctor.pulse(open_image(path))["stamp"] for path in files]
    for kind, change in CHANGES.items():
        copies = []
        for path in files:
            (tmp_path / "copy.jpg").write_bytes(petnb.doctor.redrawn(change)(path.read_bytes()))
            copies.append(petnb.doctor.pulse(open_image(tmp_path / "copy.jpg"))["stamp"])
        both = np.frombuffer(bytes.fromhex("".join(stamps + copies)), np.uint8).reshape(-1, 17, 17)
        found = {pair[:2] for pair in similar_pairs(both)}
        wanted = {(k, k + len(files)) for k in range(len(files))}
        assert found <= wanted, kind
        assert len(found) >= 0.95 * len(wanted), kind


def test_drawing_on_a_picture_is_seen(tmp_path: Path) -> None:
    """A twin is the same picture, not the same place: another animal in it makes a stranger."""
    first, second = picture(1), picture(1)
    ImageDraw.Draw(second).rectangle((0, 0, 60, 90), fill="black")
    stamps = [petnb.doctor.pulse(image)["stamp"] for image in (first, second)]
    both = np.frombuffer(bytes.fromhex("".join(stamps)), np.uint8).reshape(-1, 17, 17)
    assert similar_pairs(both) == []
