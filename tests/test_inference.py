"""The model file outside: whatever comes in, the right answer or a row that says what is wrong."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from petnb.data import ImageData
from petnb.inference import (
    NOT_SURE,
    Predictor,
    as_image,
    columns_of,
    image_from_numbers,
    latency,
    name_classes,
    predict_folder,
    read,
    thresholds_of,
    tta,
    write_answers,
)
from petnb.interpretation import interpret
from petnb.learner import Learner, read_header, vision_learner, write_model


@pytest.fixture(scope="module")
def data() -> ImageData:
    return ImageData.drawn_pets(images_per_breed=12, pixels=128, size=64, workers=0)


@pytest.fixture(scope="module")
def learn(data: ImageData) -> Learner:
    learn = vision_learner(data, show_progress=False)
    learn.fit_one_cycle(2)
    return learn


@pytest.fixture(scope="module")
def predictor(learn: Learner, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor.load(learn.export(tmp_path_factory.mktemp("model") / "pets.safetensors"))


@pytest.fixture(scope="module")
def paths(data: ImageData) -> list[str]:
    return list(data.on_side("valid")["path"])


# -- The same numbers ----------------------------------------------------------------------------


def test_validation_and_predict_agree(
    learn: Learner, predictor: Predictor, paths: list[str]
) -> None:
    said = interpret(learn).probs
    assert np.allclose(predictor.probabilities(paths).numpy(), said, atol=1e-5)
    answers = predictor.table(paths, batch_size=7)
    assert np.allclose(answers["probability"], said.max(axis=1), atol=1e-5)


def test_company_is_no_matter(predictor: Predictor, paths: list[str]) -> None:
    together = predictor.probabilities(paths[:9], batch_size=9)
    alone = torch.cat([predictor.probabilities([path]) for path in paths[:9]])
    assert torch.allclose(together, alone, atol=1e-5)


def test_company_is_no_matter_with_more_views(predictor: Predictor, paths: list[str]) -> None:
    together = predictor.probabilities(paths[:4], views=3)
    reverse = predictor.probabilities(paths[3::-1], views=3).flip(0)
    assert torch.allclose(together, reverse, atol=1e-5)


def test_callers_dice_are_left_alone(predictor: Predictor, paths: list[str]) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    predictor.predict(paths[0], views=2)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_counts_in_every_form(
    predictor: Predictor, paths: list[str], tmp_path: Path, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / "turned.jpg"
    Image.open(paths[0]).save(file, exif=exif, quality=95)
    forms: list[Any] = [file, file.read_bytes(), Image.open(file), np.array(as_image(file))]
    answers = [predictor.predict(form) for form in forms]
    assert all(answer == answers[0] for answer in answers)


def test_modes_give_the_same_in_every_form(predictor: Predictor, tmp_path: Path) -> None:
    drawn = Image.effect_noise((90, 70), 80)
    for mode, ending in [
        ("L", "png"),
        ("CMYK", "jpg"),
        ("RGBA", "png"),
        ("P", "gif"),
        ("1", "png"),
    ]:
        file = tmp_path / f"{mode}.{ending}"
        drawn.convert(mode).save(file)
        answers = [predictor.predict(form) for form in (file, file.read_bytes(), Image.open(file))]
        assert answers[0] == answers[1] == answers[2], mode


# -- What may come in ----------------------------------------------------------------------------


def test_batches_of_numbers_are_tables(predictor: Predictor, paths: list[str]) -> None:
    pictures = np.stack([np.array(as_image(path)) for path in paths[:3]])
    expected = predictor.predict(paths[:3]).drop(columns="path")
    for batch in (pictures, torch.from_numpy(pictures).permute(0, 3, 1, 2)):
        assert predictor.predict(batch).drop(columns="path").equals(expected)
    assert predictor.predict(tuple(paths[:3])).drop(columns="path").equals(expected)


@pytest.mark.parametrize(
    ("nonsense", "told"),
    [
        (None, "a NoneType is no image"),
        (7, "a int is no image"),
        (b"", "the file is empty"),
        (b"<!doctype html>", "it is an HTML page"),
        (b"\xff\xd8\xff\xe0 no more", "cannot decode 12 bytes"),
        (np.zeros((4, 4, 2), np.uint8), "height x width x 3"),
        (torch.zeros(5, 4, 4, dtype=torch.uint8), "3 x height x width"),
        (torch.zeros(2, 2, 3, 4, 4), "3 x height x width"),
        (np.zeros((4, 4), np.int64), "uint8, or fractions"),
        (np.full((4, 4, 3), 1.5), "before normalisation"),
        (np.full((4, 4, 3), np.nan), "before normalisation"),
        (np.zeros((0, 4, 3), np.uint8), "uint8, or fractions"),
        (np.zeros((0, 4, 3)), "before normalisation"),
        (np.zeros((4, 4, 3), bool), "not torch.bool"),
        (np.zeros((4, 4, 3), np.uint16), "not torch.uint16"),
        (np.array("text"), "an array of <U4 is no image"),
        (np.zeros((4, 4), object), "an array of object is no image"),
        (np.float32(1), "a float32 is no image"),
    ],
)
def test_nonsense_is_refused_in_words(predictor: Predictor, nonsense: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        predictor.predict(nonsense)
    if not isinstance(nonsense, int | None):
        row = predictor.predict([nonsense]).iloc[0]
        assert told in row["error"]
        assert row["answer"] == ""


@given(st.binary(max_size=400))
@example(b"\x89PNG\r\n\x1a\n" + b"\0" * 30)
@example(b"GIF89a\xff\xff\xff\xff\0\0\0")
@example(b"II*\0\x08\0\0\0\xff\xff")
@example(b"RIFF\x10\0\0\0WEBPVP8 ")
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_an_image_or_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError, match="cannot decode"):
        as_image(content)


@given(where=st.integers(0, 3), offset=st.integers(0, 40), flip=st.integers(1, 255))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_damaged_jpeg_never_stops_a_list(
    predictor: Predictor, where: int, offset: int, flip: int
) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((40, 30), 60).save(buffer, "JPEG")
    content = bytearray(buffer.getvalue())
    content[(len(content) * where // 4 + offset) % len(content)] ^= flip
    found = read(predictor, bytes(content))
    assert found.startswith("cannot decode") if isinstance(found, str) else found.mode == "RGB"


@pytest.mark.parametrize("size", [(4000, 1), (1, 4000), (9000, 2)])
def test_strips_are_refused_before_they_grow(predictor: Predictor, size: tuple[int, int]) -> None:
    header = predictor.header | {"size": 224}
    large = Predictor(header, predictor.scorer)
    row = large.predict([Image.new("RGB", size)]).iloc[0]
    assert f"a strip of {size[0]} x {size[1]} pixels" in row["error"]
    with pytest.raises(ValueError, match="a strip of"):
        large.predict(Image.new("RGB", size))
    assert predictor.predict(Image.new("RGB", (1, 1))).label in predictor.vocab


def test_a_run_folder_is_loaded_by_its_name(learn: Learner, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    learn.export(tmp_path / "model.safetensors")
    assert Predictor.load(tmp_path).vocab == learn.data.vocab
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        Predictor.load(empty)


def test_numbers_and_bytes_agree() -> None:
    ramp = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(3, -1, -1)
    for numbers in (ramp, ramp / 255, ramp.permute(1, 2, 0).numpy(), ramp[0], ramp[0].numpy()):
        assert np.array_equal(np.array(image_from_numbers(numbers))[..., 0].ravel(), np.arange(256))


def test_transparent_numbers_are_laid_on_white() -> None:
    clear = np.zeros((3, 3, 4), np.uint8)
    assert image_from_numbers(clear).getpixel((1, 1)) == (255, 255, 255)


# -- Broken files, folders, tables ---------------------------------------------------------------


def test_a_folder_with_everything_wrong(
    predictor: Predictor, paths: list[str], tmp_path: Path
) -> None:
    good = Path(paths[0]).read_bytes()
    files = {
        "a.jpg": good,
        "=b.jpg": good,
        "empty.jpg": b"",
        "page.jpg": b"<html>",
        "cut.jpg": good[: len(good) // 2],
        'sub/ü\n".jpg': good,
        ".hidden.jpg": good,
        "phone.heic": b"ftypheic",
        "camera.nef": b"raw",
        "note.txt": b"no image",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    answers = predict_folder(predictor, tmp_path).set_index("path")
    errors = {Path(str(path)).name: error for path, error in answers["error"].items()}
    assert set(errors) == {Path(name).name for name in files} - {".hidden.jpg", "note.txt"}
    assert {name for name, error in errors.items() if not error} == {"a.jpg", "=b.jpg", 'ü\n".jpg'}
    assert "empty" in errors["empty.jpg"]
    assert "HTML" in errors["page.jpg"]
    assert "pillow-heif" in errors["phone.heic"]
    known = answers[answers["error"] == ""]
    assert known["label"].nunique() == 1
    assert known["probability"].nunique() == 1


def test_an_empty_folder_is_an_error(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no image under"):
        predictor.predict(tmp_path)


def test_only_broken_files(predictor: Predictor, tmp_path: Path) -> None:
    answers = predictor.predict([tmp_path / "missing.jpg", b""])
    assert answers["answer"].tolist() == ["", ""]
    assert answers["probability"].isna().all()
    assert "missing.jpg" in answers["error"][0]


def test_an_empty_list_is_an_empty_table(predictor: Predictor) -> None:
    answers = predictor.predict([])
    assert list(answers.columns) == columns_of(3)
    assert len(answers) == 0


def test_more_ranks_than_classes(predictor: Predictor, paths: list[str]) -> None:
    n = len(predictor.vocab)
    answers = predictor.predict([paths[0], b""], top=n + 2)
    assert sorted(answers.iloc[0][["label", *(f"label_{k}" for k in range(2, n + 1))]]) == sorted(
        predictor.vocab
    )
    assert answers.iloc[0][f"label_{n + 2}"] == ""
    shares = answers.iloc[0][["probability", *(f"probability_{k}" for k in range(2, n + 1))]]
    assert float(shares.sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("wrong", [{"top": 0}, {"views": -1}])
def test_counts_below_their_least_are_refused(
    predictor: Predictor, paths: list[str], wrong: dict[str, int]
) -> None:
    with pytest.raises(ValueError, match="are needed"):
        predictor.predict(paths[:1], **wrong)


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


@given(names=st.lists(NAMES, min_size=1, max_size=5))
@example(names=["=1+1", "@x", "-1", "+1", "\t=1", 'a"b', "line\nend", " =1"])
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_names_survive_the_csv(names: list[str], tmp_path: Path) -> None:
    answers = pd.DataFrame([[name, "Pug", "Pug", 0.1 + 0.2, ""] for name in names],
                           columns=columns_of(1))  # fmt: skip
    file = write_answers(answers, tmp_path / "answers.csv")
    again = pd.read_csv(file, keep_default_na=False, encoding="utf-8", dtype={"path": str})
    assert again["probability"].tolist() == [0.1 + 0.2] * len(names)
    assert again["path"].tolist() == names
    people = write_answers(answers, tmp_path / "people.csv", spreadsheet=True)
    for path in pd.read_csv(people, encoding="utf-8-sig", dtype={"path": str})["path"].fillna(""):
        assert str(path).lstrip(" ")[:1] not in {"=", "+", "-", "@", "\t", "\r"}


def test_a_path_that_is_not_unicode(tmp_path: Path) -> None:
    answers = pd.DataFrame([["caf\udce9.jpg", "Pug", "Pug", 1.0, ""]], columns=columns_of(1))
    exact = write_answers(answers, tmp_path / "exact.csv").read_bytes()
    assert b"caf\xe9.jpg" in exact
    write_answers(answers, tmp_path / "people.csv", spreadsheet=True).read_text("utf-8-sig")


# -- Sure or not, warm or cold -------------------------------------------------------------------


def test_not_sure_under_the_threshold(learn: Learner, tmp_path: Path, paths: list[str]) -> None:
    never = Predictor.load(learn.export(tmp_path / "never.safetensors", threshold=1.0))
    assert set(never.predict(paths[:8])["answer"]) == {NOT_SURE}
    one = never.predict(paths[0])
    assert repr(one).startswith("not sure: ")
    assert one.label in learn.data.vocab


def test_a_threshold_is_reached_by_equality() -> None:
    row = torch.tensor([0.25, 0.75])
    assert name_classes(row, ["a", "b"], {"a": 1.0, "b": 0.75}).sure
    assert not name_classes(row, ["a", "b"], {"b": 0.7500001}).sure


def test_ties_keep_the_order_of_the_vocabulary() -> None:
    assert name_classes(torch.tensor([0.2, 0.4, 0.4]), ["c", "b", "a"], {}).label == "b"


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan"), {"b": 2.0}, {"z": 0.5}])
def test_wrong_thresholds_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="threshold"):
        thresholds_of(wrong, ["a", "b"])


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("inf"), float("nan")])
def test_wrong_temperatures_are_refused(learn: Learner, tmp_path: Path, wrong: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        learn.export(tmp_path / "x.safetensors", temperature=wrong)
    assert list(tmp_path.iterdir()) == []


def test_temperature_is_the_formula(learn: Learner, tmp_path: Path, paths: list[str]) -> None:
    plain = Predictor.load(learn.export(tmp_path / "1.safetensors")).probabilities(paths[:6])
    cooled = Predictor.load(learn.export(tmp_path / "3.safetensors", temperature=3.0))
    expected = (plain.log() / 3).softmax(dim=1)
    assert torch.allclose(cooled.probabilities(paths[:6]), expected, atol=1e-5)


def test_files_without_the_new_entries_are_read(
    learn: Learner, tmp_path: Path, paths: list[str]
) -> None:
    old = Predictor.load(write_model(learn, tmp_path / "old.safetensors"))
    assert "temperature" not in read_header(tmp_path / "old.safetensors")
    assert old.predict(paths[0]).sure


def test_card_travels(learn: Learner, tmp_path: Path) -> None:
    card = "# Pets\n\nüber 😺"
    assert Predictor.load(learn.export(tmp_path / "a.safetensors", card=card)).card == card


# -- Several looks -------------------------------------------------------------------------------


def test_shares_of_the_plain_view(learn: Learner) -> None:
    plain, augmented = tta(learn, n=2, beta=1.0)[0], tta(learn, n=2, beta=0.0)[0]
    assert torch.allclose(tta(learn, n=2)[0], 0.25 * plain + 0.75 * augmented, atol=1e-6)
    even = tta(learn, n=2, beta=None)[0]
    assert torch.allclose(even, plain / 3 + 2 * augmented / 3, atol=1e-6)


@pytest.mark.parametrize(("beta", "share"), [(0.25, 0.25), (1.0, 1.0), (None, 1 / 3)])
def test_views_of_new_pictures_are_mixed_by_the_share(
    predictor: Predictor, paths: list[str], beta: float | None, share: float
) -> None:
    one = Predictor(predictor.header, predictor.scorer)
    assert one.beta == 0.25
    one.beta = 0.0
    augmented, plain = (one.probabilities(paths[:4], views=views) for views in (2, 0))
    one.beta = beta
    mixed = one.probabilities(paths[:4], views=2)
    assert torch.allclose(mixed, (1 - share) * augmented + share * plain, atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": 0}, {"temperature": "1"}, {"temperature": float("nan")}, {"thresholds": 0.5},
     {"thresholds": {"Goldfish": 0.5}}, {"thresholds": {"pug": "0.5"}}, {"card": 7},
     {"thresholds": {"pug": 2}}, {"calibration": None}],
)  # fmt: skip
def test_a_header_that_petnb_would_not_write_is_refused(
    learn: Learner, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    assert "pug" in learn.data.vocab
    file = write_model(learn, tmp_path / "odd.safetensors", **wrong)
    with pytest.raises(ValueError, match=rf"odd.safetensors has a header .* {next(iter(wrong))}"):
        Predictor.load(file)


def test_latency_tells_of_each_step(predictor: Predictor, paths: list[str]) -> None:
    took = latency(predictor, paths[0], repeats=3)
    assert list(took.index) == ["decode", "transform", "network", "together"]
    assert (took > 0).all(axis=None)


# -- Real photographs ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", [Path, lambda path: Path(path).read_bytes(), Image.open])
def test_photographs_in_every_form(
    photographs: Path, predictor: Predictor, form: Callable[[str], Any]
) -> None:
    some = [str(path) for path in sorted((photographs / "images").glob("*.jpg"))[::90]]
    expected = predictor.probabilities(some)
    assert torch.equal(predictor.probabilities([form(path) for path in some]), expected)
