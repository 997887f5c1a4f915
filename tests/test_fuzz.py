"""Bytes and names that an enemy chose: each is taken or refused with a reason, and none does harm.

Hypothesis chooses them; every run here tries the same ones. The environment variable PETNB_FUZZ
multiplies their number and lets each run try others (.github/workflows/long.yml).
"""

import io
import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save as to_bytes

from petnb import Predictor, vision_learner
from petnb.data import ImageData, ImageError, glance, open_image
from petnb.doctor import measure
from petnb.learner import Learner, header
from petnb.resume import checkpoint_path
from petnb.safe_files import DamagedFileError, fingerprint, previous, read_tensors, write_tensors
from petnb.sources import check_edits
from petnb.transforms import decode_pixels, is_ordinary

TIMES = int(os.environ.get("PETNB_FUZZ", "1"))


def tries(number: int) -> settings:
    """So many examples; slow ones and function-scoped fixtures are fine."""
    return settings(
        max_examples=number * TIMES,
        derandomize=TIMES == 1,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def outcome(action: Callable[[], Any], *kinds: type[Exception]) -> tuple[Any, Exception | None]:
    """What `action` gives, or the error of one of these kinds that it raises, with a message."""
    try:
        return action(), None
    except kinds as error:
        if not str(error):
            raise
        return None, error


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """`whole` after a few cuts, copies and overwritten or inserted bytes."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        # Half of the harm is done near the beginning, where headers are
        far = len(content) if draw(st.booleans()) else min(len(content), 200)
        start, length = draw(st.integers(0, max(far - 1, 0))), draw(st.integers(1, 40))
        match draw(st.sampled_from(["overwrite", "insert", "cut", "repeat", "end", "number"])):
            case "overwrite":
                content[start : start + length] = draw(st.binary(min_size=length, max_size=length))
            case "insert":
                content[start:start] = draw(st.binary(min_size=1, max_size=length))
            case "cut":
                del content[start : start + length]
            case "repeat":
                content[start:start] = content[start : start + length] * draw(st.integers(1, 20))
            case "end":
                del content[start + length :]
            case "number":  # Sizes and offsets love to be extreme
                wide = draw(st.sampled_from([1, 2, 4, 8]))
                value = draw(st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]))
                order = draw(st.sampled_from(["little", "big"]))
                content[start : start + wide] = (value % 256**wide).to_bytes(wide, order)
    return bytes(content)


# -- Images --------------------------------------------------------------------------------------


def encoded(kind: str, **options: Any) -> bytes:
    """A small picture, with an orientation where the format keeps one, if not told otherwise."""
    picture = Image.radial_gradient("L").resize((24, 20)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    turned = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}
    picture.save(buffer, kind, **turned | options)
    return buffer.getvalue()


SEEDS = {
    "JPEG": encoded("JPEG"),
    "progressive JPEG": encoded("JPEG", progressive=True),
    "PNG": encoded("PNG"),
    "GIF": encoded("GIF", save_all=True, append_images=[Image.new("RGB", (24, 20), "red")]),
    "WEBP": encoded("WEBP"),
    "TIFF": encoded("TIFF", compression="tiff_lzw"),
    "BMP": encoded("BMP"),
    "MPO": encoded("MPO", save_all=True, append_images=[Image.new("RGB", (24, 20), "red")]),
}


@pytest.fixture
def small_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A header that announces a million pixels more is refused, so that no example takes long."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2_000_000)


@pytest.mark.usefixtures("small_cap")
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow of damaged tags
@pytest.mark.parametrize("kind", SEEDS)
def test_bytes_of_an_image(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "1.jpg"

    @tries(200)
    @given(damaged(SEEDS[kind]))
    @example(b"")
    @example(SEEDS[kind])
    def run(content: bytes) -> None:
        path.write_bytes(content)
        noted, seen = measure(path), glance(path)
        picture, error = outcome(lambda: open_image(path), ImageError)
        if picture is None:
            assert (getattr(error, "path", ""), getattr(error, "reason", "")) == (
                str(path), noted.reason,
            )  # fmt: skip
            assert noted.reason
        else:
            assert picture.mode == "RGB"
            assert picture.width * picture.height <= 2_000_000
            assert not noted.reason
            assert not seen

    run()


@pytest.mark.usefixtures("small_cap")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "options", [{}, {"quality": 95, "subsampling": 0}, {"progressive": True}], ids=str
)
def test_two_decoders_agree(options: dict[str, Any], tmp_path: Path) -> None:
    """Of a damaged JPEG, too: Pillow's pixels, or Pillow's error."""
    path, whole = tmp_path / "1.jpg", encoded("JPEG", exif=Image.Exif(), **options)
    path.write_bytes(whole)
    assert is_ordinary(str(path))

    @tries(200)
    @given(damaged(whole))
    @example(whole)
    @example(whole[: len(whole) // 2])
    @example(whole[:-2])
    @example(whole + b"more")
    def run(content: bytes) -> None:
        path.write_bytes(content)
        picture, error = outcome(lambda: open_image(path), ImageError)
        if picture is None:
            with pytest.raises(ImageError) as same:
                decode_pixels(str(path))
            assert str(same.value) == str(error)
        else:
            assert np.array_equal(decode_pixels(str(path)).permute(1, 2, 0), picture)

    run()


# -- Tables of corrections -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def home() -> Iterator[ImageData]:
    """Two classes of empty files, and a secret beside their folder."""
    with TemporaryDirectory() as folder:
        root = Path(folder, "pets")
        for name in ("a/0.jpg", "a/1.jpg", "a/2.jpg", "b/0.jpg", "b/1.jpg", "b/2.jpg"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        Path(folder, "secret.jpg").touch()
        (root / "out").symlink_to(folder)
        yield ImageData.from_folder(root, on_bad="ignore")


TABLE = (
    'path,label\r\na/0.jpg,b\r\n"a/1.jpg","delete"\r\n../secret.jpg,delete\r\n'
    "out/secret.jpg,a\r\nb/0.jpg,naïve\r\n"
).encode()
PARTS = st.sampled_from(
    [".", "..", "a", "b", "0.jpg", "1.jpg", "out", "secret.jpg", "~", "", "\0", "pets", "C:", "\\"]
)
PATHS = st.one_of(st.lists(PARTS, max_size=8).map("/".join), st.text(max_size=30))


LONG = b"path,label\n" + b"a" * 200_000 + b",b\n"  # Over the limit of the csv module


def outside(home: ImageData) -> list[tuple[str, int]]:
    """Every file below and beside the images, with its time."""
    return [(str(path), path.lstat().st_mtime_ns) for path in sorted(home.root.parent.rglob("*"))]


def obeyed(home: ImageData, edits: Any, new_classes: bool) -> None:
    """Corrections change labels of known images, or are refused; they touch no file."""
    before, known = outside(home), set(home.items["path"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        verdicts, _ = outcome(lambda: check_edits(home, edits, new_classes), ValueError, KeyError)
        data, _ = outcome(lambda: home.relabel(edits, new_classes), ValueError, KeyError)
        if verdicts is not None:
            accepted = verdicts[~verdicts["verdict"].str.startswith("refused")]
            assert accepted["place"].between(0, len(known) - 1).all()
        if data is not None:
            assert set(data.items["path"]) <= known
            assert new_classes or set(data.items["label"]) <= set(home.vocab)
            repr(data), data._repr_html_()
    assert outside(home) == before


@tries(200)
@given(damaged(TABLE), st.booleans())
@example(TABLE, False)
@example(b"", False)
@example(b"path,label\n\0,a\n", True)
@example(LONG, False)
@example(b'path,label\n"a/0.jpg,b\n', False)
@example("path,label\na/0.jpg,b\n".encode("utf-16"), False)
@example(b"path,path,label,label\na/0.jpg,a/1.jpg,b,b\n", False)
def test_bytes_of_a_table(home: ImageData, content: bytes, new_classes: bool) -> None:
    with TemporaryDirectory() as folder:
        table = Path(folder, "edits.csv")
        table.write_bytes(content)
        obeyed(home, table, new_classes)


@tries(200)
@given(st.lists(st.tuples(PATHS, st.sampled_from(["a", "b", "delete", "", "c"])), max_size=6),
       st.booleans())  # fmt: skip
@example([("../secret.jpg", "delete"), ("out/secret.jpg", "a"), ("a/\0.jpg", "b")], False)
def test_paths_in_a_table(home: ImageData, rows: list[tuple[str, str]], new_classes: bool) -> None:
    obeyed(home, pd.DataFrame(rows, columns=["path", "label"], dtype=object), new_classes)


# -- Files of weights ----------------------------------------------------------------------------

TENSORS = {
    "body.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "body.steps": torch.tensor(7),
    "empty": torch.zeros(0, 4, dtype=torch.bfloat16),
}
HEADER: dict[str, Any] = {"vocab": ["a", "naïve 🐈"], "size": 224, "history": [{"loss": 0.5}]}


def same_tensors(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == TENSORS.keys() and all(
        torch.equal(tensor, TENSORS[name]) and tensor.dtype == TENSORS[name].dtype
        for name, tensor in found.items()
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file that petnb wrote."""
    return write_tensors(
        tmp_path_factory.mktemp("w") / "1.safetensors", TENSORS, HEADER
    ).read_bytes()


def test_every_bit_of_a_file_counts(whole: bytes, tmp_path: Path) -> None:
    """Whichever bit is turned over: the file is refused, by name."""
    path = tmp_path / "1.safetensors"
    for place in range(8 * len(whole)):
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)
        with pytest.raises(DamagedFileError, match=r"1\.safetensors"):
            read_tensors(path)


def test_every_length_of_a_file_counts(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "1.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedFileError, match=r"1\.safetensors"):
            read_tensors(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(DamagedFileError, match=r"1\.safetensors"):
        read_tensors(path)


@tries(300)
@given(st.data())
def test_bytes_of_a_file_of_weights(whole: bytes, data: st.DataObject) -> None:
    """Refused, or what was written, to the bit."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "1.safetensors")
        path.write_bytes(data.draw(damaged(whole)))
        found, error = outcome(lambda: read_tensors(path), DamagedFileError)
        assert str(path) in str(error) if error else same_tensors(found[0])
        assert error or found[1] == HEADER


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


def forged(path: Path, text: str) -> Path:
    """A file whose fingerprint is right: an enemy can compute it too."""
    path.write_bytes(to_bytes(TENSORS, {"petnb": text, "sha256": fingerprint(TENSORS, text)}))
    return path


@tries(100)
@given(st.one_of(st.text(max_size=30), JSON.map(json.dumps)))
@example("[" * 100_000)
@example('{"a":' * 100_000)
@example("1" * 10_000)
@example('{"a": NaN, "a": Infinity}')
@example("[]")
@example("null")
def test_forged_headers(text: str) -> None:
    """What is no JSON object is refused by the file's name, with whichever fingerprint."""
    with TemporaryDirectory() as folder:
        path = forged(Path(folder, "1.safetensors"), text)
        found, error = outcome(lambda: read_tensors(path), DamagedFileError)
        assert str(path) in str(error) if error else same_tensors(found[0])
        assert error or type(found[1]) is dict


STRANGE: dict[str, list[Any]] = {
    "architecture": ["../resnet10t", "hf-hub:someone/something", "local-dir:/etc", "", "resnet18"],
    "head": ["other", "", "fastai"],
    "vocab": [
        [],
        ["a"],
        ["a"] * 10,
        list(range(10)),
        [None] * 10,
        "abcdefghij",
        [f"{n}" for n in range(11)],
    ],
    "size": [0, -1, 10**9, 1e9, 10**400, True, "224"],
    "crop_pct": [0, -1, 1e9, float("nan"), 1e-300],
    "mean": [[], [0.5], [0.5] * 4, ["a"] * 3, [[0.5]] * 3],
    "std": [[], [0.0] * 3, [-1.0] * 3, [float("nan")] * 3],
    "precision": ["int8", "", "bfloat16 "],
    "format": [99, -1, 10**400],
    "n_epochs": [-1, 0.5, "1"],
    "history": [[1], {"a": 1}, [[]]],
}


@pytest.fixture(scope="module")
def learn() -> Learner:
    data = ImageData.drawn_pets(images_per_breed=12, pixels=128, size=32, workers=0)
    return vision_learner(data, "resnet10t", pretrained=False, show_progress=False)


@tries(80)
@given(st.sampled_from(sorted(STRANGE)), st.one_of(st.none(), st.integers(0, 9)), JSON)
def test_forged_models(learn: Learner, name: str, which: int | None, value: Any) -> None:
    """Refused by the file's name, before a weight has moved, or good for an answer."""
    forged_header = header(learn)
    if which is None:
        forged_header[name] = value
    elif which == 9:
        del forged_header[name]
    else:
        forged_header[name] = STRANGE[name][which % len(STRANGE[name])]
    before = {name: tensor.clone() for name, tensor in learn.model.state_dict().items()}
    picture = Image.new("RGB", (40, 30), "red")
    with TemporaryDirectory() as folder:
        learn.path = Path(folder)
        path = write_tensors(learn.path / "1.safetensors", learn.model.state_dict(), forged_header)
        predictor, _ = outcome(lambda: Predictor.load(path), ValueError)
        assert predictor is None or predictor.predict(picture).label
        _, error = outcome(lambda: learn.load("1"), ValueError)
        assert error is None or str(path) in str(error)
    after = learn.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


# -- Checkpoints ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(learn: Learner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a fit that is finished, so that going on takes no time."""
    return trained(learn, tmp_path_factory.mktemp("fit"), False)


def trained(learn: Learner, folder: Path, resume: bool) -> Path:
    """The checkpoint of one epoch."""
    anew = vision_learner(learn.data, "resnet10t", pretrained=False, path=folder,
                          precision="float32", show_progress=False)  # fmt: skip
    anew.fit(1, 1e-3, checkpoint_every=9, resume=resume)
    return checkpoint_path(folder, 1)


@tries(30)
@given(st.data())
def test_forged_checkpoints(learn: Learner, checkpoint: Path, data: st.DataObject) -> None:
    """Refused by the file's name, or taken; and nothing but the checkpoint is written."""
    tensors, told = read_tensors(checkpoint)
    place = data.draw(st.sampled_from([told, told["learner"], told["fit"], told["conditions"]]))
    name = data.draw(st.sampled_from(sorted(place)))
    if data.draw(st.booleans()):
        del place[name]
    else:
        place[name] = data.draw(JSON)
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Another machine
        path = write_tensors(checkpoint_path(Path(folder), 1), tensors, told)
        _, error = outcome(lambda: trained(learn, Path(folder), True), ValueError)
        assert error is None or str(path) in str(error)
        assert {file.name for file in Path(folder).rglob("*")} <= {
            "checkpoints", ".lock", path.name, previous(path).name,
        }  # fmt: skip
