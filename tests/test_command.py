"""The command: from a folder to predictions, when it is used wrongly, and for machines."""

import io
import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import termios
import tomllib
from argparse import Namespace
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.constants import SAFETENSORS_MAX_HEADER_LENGTH
from PIL import Image
from safetensors import safe_open

from petnb import cli
from petnb.augmentation import named_augmentations
from petnb.cli import AUGMENTATIONS, GRAVE, Parser, WrongUseError, main, make_parser, parse
from petnb.data import ImageData
from petnb.doctor import FINDINGS
from petnb.drawing import draw_pets
from petnb.inference import Predictor
from petnb.interpretation import Interpretation
from petnb.learner import read_model
from petnb.model_card import as_text
from petnb.recipes import RECIPES, Recipe
from petnb.runs import read_data, to_toml
from petnb.safe_files import write_tensors

ROOT = Path(__file__).resolve().parent.parent
BREEDS = ["Siamese", "corgi", "pug"]
SMALL = ["--size", "64", "--batch-size", "8", "--workers", "0"]
LINE = [sys.executable, "-c", "import sys; from petnb.cli import main; sys.exit(main())"]
HEAVY = ("matplotlib", "numpy", "pandas", "timm", "torch", "torchvision")


def petnb(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as somebody would call it in another folder."""
    where = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
    return subprocess.run(
        [*LINE, *map(str, words)], cwd=cwd, env=where, capture_output=True, text=True, check=False
    )


def in_folders(items: pd.DataFrame, folder: Path) -> None:
    """Copies of images, in a folder for each class."""
    for row in items.itertuples():
        (folder / str(row.label)).mkdir(parents=True, exist_ok=True)
        shutil.copy(str(row.path), folder / str(row.label))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs to learn from, `photographs`, and a folder with new ones, `new`."""
    folder = tmp_path_factory.mktemp("newcomer")
    pets = ImageData.drawn_pets(images_per_breed=10, pixels=128)
    in_folders(pets.items[pets.items["label"].isin(BREEDS)], folder / "photographs")
    drawn = draw_pets(folder / "drawn", 2, 128, 7)
    (folder / "new").mkdir()
    for path in drawn.iterdir():
        if path.name.rpartition("_")[0] in BREEDS:
            shutil.copy(path, folder / "new")
    return folder


@pytest.fixture(scope="module")
def trained(place: Path) -> subprocess.CompletedProcess[str]:
    """The first of the newcomer's two commands, under `nohup`, and then a hang-up."""
    words = ["train", "--data", "photographs", "--fine-tune-epochs", "1", "--out", "run", *SMALL]
    where = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
    line = ["nohup", *LINE, *words]
    with subprocess.Popen(
        line, cwd=place, env=where, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        assert running.stdout
        first = running.stdout.readline()  # Comes while the training has only begun
        if not (place / "run" / "model.safetensors").exists():
            running.send_signal(signal.SIGHUP)
        out, err = running.communicate()
    return subprocess.CompletedProcess(line, running.returncode, first + out, err)


# -- From a folder to predictions ----------------------------------------------------------------


def test_two_commands_from_a_folder_to_predictions(
    place: Path, trained: subprocess.CompletedProcess[str]
) -> None:
    assert trained.returncode == 0, trained.stderr
    told = petnb("predict", "run", "new", cwd=place)
    assert told.returncode == 0, told.stderr
    rows = [line.split("\t") for line in told.stdout.splitlines()]
    assert len(rows) == 6
    right = [Path(path).name.startswith(label) for path, label, _ in rows]
    assert sum(right) >= 4  # by chance it were 2
    assert all(0 <= float(probability) <= 1 for *_, probability in rows)


def test_a_hang_up_does_not_stop_it(trained: subprocess.CompletedProcess[str]) -> None:
    assert trained.returncode == 0
    assert trained.stdout.startswith("ImageData: 30 images of 3 classes")


def test_a_log_has_no_terminal_signs(trained: subprocess.CompletedProcess[str]) -> None:
    assert not set("\r\x1b") & set(trained.stdout + trained.stderr)
    lines = trained.stdout.splitlines()
    first = next(place for place, line in enumerate(lines) if line.split()[:1] == ["epoch"])
    assert len({len(line) for line in lines[first : first + 5]}) == 1, lines[first : first + 5]


def test_the_run_folder_holds_all(place: Path, trained: subprocess.CompletedProcess[str]) -> None:
    names = {path.relative_to(place / "run").as_posix() for path in (place / "run").rglob("*.*")}
    kept = {"model.safetensors", "head.safetensors", "config.toml", "history.csv", "result.json",
            "interpretation.npz", "README.md", "figures/confusion_matrix.png"}  # fmt: skip
    assert kept <= names
    assert not [name for name in names if name.startswith(".")]
    assert "\nNow: petnb predict run NEW_PHOTOGRAPHS\n" in trained.stdout


def test_the_run_folder_is_what_the_hub_takes(place: Path, trained: Any) -> None:
    """As far as can be seen without a network: the page's block, the weights, the header."""
    card = ModelCard.load(place / "run" / "README.md")
    result = json.loads((place / "run" / "result.json").read_text(encoding="utf-8"))
    (measured, _), block = card.data.eval_results or [], card.data.to_dict()
    assert measured.metric_value == round(result["accuracy"], 4)
    assert block["model-index"][0]["results"][0]["task"]["type"] == "image-classification"
    assert block["license"] == "apache-2.0"
    assert block["library_name"] == "petnb"
    assert yaml.safe_load(card.content.split("\n---\n")[0]) == block
    with safe_open(place / "run" / "model.safetensors", "np") as weights:
        assert all(isinstance(value, str) for value in weights.metadata().values())
    with open(place / "run" / "model.safetensors", "rb") as file:
        assert int.from_bytes(file.read(8), "little") < SAFETENSORS_MAX_HEADER_LENGTH
    config = json.loads((place / "run" / "config.json").read_text(encoding="utf-8"))
    assert config["num_classes"] == 3
    for name in ("README.md", "config.json", "history.csv", "result.json"):
        assert str(place) not in (place / "run" / name).read_text(encoding="utf-8"), name


def test_real_photographs_to_predictions(photographs: Path, tmp_path: Path) -> None:
    items = ImageData.oxford_pets(photographs, valid="official").items
    some = items[items["label"].isin(["Siamese", "pug", "samoyed", "Sphynx"])]
    in_folders(some[some["split"] == "train"], tmp_path / "photographs")
    in_folders(some[some["split"] == "valid"], tmp_path / "new")
    words = ["--data", "photographs", "--recipe", "fast", "--out", "run", "--size", "160"]
    done = petnb("train", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = petnb("predict", "run", "new", "--json", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    answers = json.loads(told.stdout)["answers"]
    right = [Path(answer["path"]).parent.name == answer["label"] for answer in answers]
    assert len(right) == (some["split"] == "valid").sum()
    assert sum(right) > 0.7 * len(right)
    shown = petnb("predict", "run", "new", cwd=tmp_path).stdout.splitlines()
    assert [line.split("\t")[0] for line in shown] == [answer["path"] for answer in answers]
    assert str(tmp_path) not in "".join(shown)


def test_a_run_is_started_from_its_settings(
    place: Path, trained: subprocess.CompletedProcess[str]
) -> None:
    assert trained.returncode == 0
    settings = tomllib.loads((place / "run" / "config.toml").read_text(encoding="utf-8"))
    again = vars(parse(["train", "--config", str(place / "run")]))
    for name, value in settings.items():
        if name != "version":
            assert again[name] == value, name
    assert parse(["train", "--config", str(place / "run"), "--seed", "7"]).seed == 7


def test_options_about_images_reach_them_and_the_settings(place: Path) -> None:
    words = ["train", "--data", str(place / "photographs"), *SMALL]
    plain, data = (
        read_data(parse([*words, *more]))
        for more in ([], ["--groups", "duplicates", "--balance", "--augment", "none"])
    )
    assert (plain.balance, plain.augment) == (False, None)
    assert (data.balance, data.augment) == (True, "none")
    assert "together" in data.items
    assert "together" not in plain.items
    assert parse([*words, "--balance", "--no-balance"]).balance is False


def test_the_settings_of_a_balanced_run_are_read_again(tmp_path: Path) -> None:
    typed = parse(["train", "--balance", "--groups", "duplicates", "--on-bad", "skip"])
    kept = {name: getattr(typed, name) for name in ("balance", "groups", "on_bad")}
    (tmp_path / "config.toml").write_text(to_toml(kept), encoding="utf-8")
    again = vars(parse(["train", "--config", str(tmp_path)]))
    assert {name: again[name] for name in kept} == kept


# -- Sure or not ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with enough images held out for a temperature and a threshold."""
    run = tmp_path_factory.mktemp("certain") / "run"
    words = ["--valid-pct", "0.5", "--recipe", "fast", "--epochs", "2", "--sure", "0.8", *SMALL]
    told, said = io.StringIO(), io.StringIO()
    with redirect_stdout(told), redirect_stderr(said):
        assert main(["train", *words, "--json", "--out", str(run)]) == 0
    (run / "told.json").write_text(told.getvalue(), encoding="utf-8")
    (run / "said.txt").write_text(said.getvalue(), encoding="utf-8")
    return run


def test_a_training_tells_machines_what_came_of_it(certain: Path) -> None:
    told = json.loads((certain / "told.json").read_text(encoding="utf-8"))
    result = json.loads((certain / "result.json").read_text(encoding="utf-8"))
    assert told == result | {"run": str(certain), "model": str(certain / "model.safetensors")}


def test_a_training_chooses_temperature_and_threshold_and_says_how(certain: Path) -> None:
    result = json.loads((certain / "result.json").read_text(encoding="utf-8"))
    predictor = Predictor.load(certain)
    told = predictor.calibration
    assert result["temperature"] == predictor.header["temperature"] != 1
    assert {result["threshold"]} == set(predictor.thresholds.values())
    assert f"fitted on {result['images_held_out']} held-out images" in told
    assert result["calibration"] == told
    assert told in (certain / "said.txt").read_text(encoding="utf-8")
    assert as_text(told) in (certain / "README.md").read_text(encoding="utf-8")
    assert json.loads((certain / "config.json").read_text("utf-8"))["calibration"] == told
    assert tomllib.loads((certain / "config.toml").read_text("utf-8"))["sure"] == 0.8
    before, after = result["calibration_error"]
    assert f"from {before:.3f} to {after:.3f}" in told


def test_what_a_run_keeps_is_what_predict_says(
    certain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interp = Interpretation.load(certain / "interpretation.npz")
    code, told, _ = answer(capsys, "predict", certain, *interp.items["path"])
    assert code == 0
    said = [row["probability"] for row in told["answers"]]
    assert np.allclose(said, interp.probs.max(axis=1), atol=1e-5)
    threshold = json.loads((certain / "result.json").read_text("utf-8"))["threshold"]
    unsure = [row["answer"] == "not sure" for row in told["answers"]]
    assert unsure == (interp.probs.max(axis=1) < threshold).tolist()


def test_a_guess_stands_behind_not_sure(
    certain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, header = read_model(certain / "model.safetensors")
    never = tmp_path / "never.safetensors"
    write_tensors(never, tensors, header | {"thresholds": dict.fromkeys(header["vocab"], 1.0)})
    photograph = Interpretation.load(certain / "interpretation.npz").items["path"][0]
    assert main(["predict", str(never), photograph]) == 0
    path, said, probability, guess = capsys.readouterr().out.rstrip("\n").split("\t")
    assert (path, said) == (photograph, "not sure")
    assert float(probability) < 1
    assert guess.removeprefix("perhaps ") in header["vocab"]


def test_a_training_that_is_told_not_to_chooses_nothing(tmp_path: Path) -> None:
    words = ["--valid-pct", "0.5", "--recipe", "fast", "--epochs", "1", *SMALL]
    run = tmp_path / "run"
    assert main(["train", *words, "--sure", "0", "--temperature", "1", "--out", str(run)]) == 0
    predictor = Predictor.load(run)
    assert predictor.header["temperature"] == 1
    assert set(predictor.thresholds.values()) == {0}
    assert "given, not fitted. No answer is withheld" in predictor.calibration
    interp = Interpretation.load(run / "interpretation.npz")
    history = pd.read_csv(run / "history.csv")
    assert history["valid_loss"].iloc[-1] == pytest.approx(interp.losses.mean(), abs=1e-5)


# -- The other commands --------------------------------------------------------------------------


def answer(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, Any, str]:
    """Exit code, what machines read, what people read."""
    code = main([*map(str, words), "--json"])
    told = capsys.readouterr()
    return code, json.loads(told.out), told.err


def test_what_cannot_be_read_is_counted_and_the_rest_goes_on(
    place: Path, trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = next((place / "new").iterdir())
    shutil.copy(good, tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"not a photograph")
    table = tmp_path / "a.csv"
    words = [place / "run", good, tmp_path, "missing.jpg", "--top", "2", "--csv", table]
    code, told, shown = answer(capsys, "predict", *words)
    assert code == 1
    assert told["not_read"] == 2
    read = [row for row in told["answers"] if not row["error"]]
    assert len(read) == 2
    assert read[0]["probability"] == read[1]["probability"]
    assert read[0]["probability"] >= read[0]["probability_2"]
    assert "not read: missing.jpg" in shown
    assert len(pd.read_csv(table)) == 4


def test_views_are_those_of_the_run(place: Path, trained: Any, tmp_path: Path) -> None:
    model = Path(shutil.copy(place / "run" / "model.safetensors", tmp_path))
    assert cli.views_of_run(model) == 0
    (tmp_path / "config.toml").write_text("tta = 4\n")
    assert cli.views_of_run(model) == 4


def test_report(
    place: Path, trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told, _ = answer(capsys, "report", place / "run", "--out", tmp_path / "report.html")
    assert code == 0
    assert "corgi" in Path(told["report"]).read_text(encoding="utf-8")


@pytest.mark.parametrize("ending", [".onnx", ".safetensors"])
def test_an_exported_model_answers_the_same(
    place: Path, trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    if ending == ".onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    target = tmp_path / f"pets{ending}"
    assert answer(capsys, "export", place / "run", "--out", target)[0] == 0
    told = [
        answer(capsys, "predict", model, place / "new")[1]["answers"]
        for model in (place / "run", target)
    ]
    assert [row["label"] for row in told[0]] == [row["label"] for row in told[1]]
    gaps = [abs(a["probability"] - b["probability"]) for a, b in zip(*told, strict=True)]
    assert max(gaps) < 0.02  # the model may run in bfloat16


@pytest.mark.parametrize(
    ("target", "told"),
    [("pets.pt", "neither .onnx nor .safetensors"), ("run/model.safetensors", "the model itself")],
)
def test_an_export_is_what_its_name_says(
    place: Path,
    trained: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    target: str,
    told: str,
) -> None:
    monkeypatch.chdir(place)
    before = (place / "run" / "model.safetensors").read_bytes()
    assert main(["export", "run", "--out", target]) == 2
    assert told in capsys.readouterr().err
    assert not (place / "pets.pt").exists()
    assert (place / "run" / "model.safetensors").read_bytes() == before


def test_onnx_is_not_copied_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "pets.onnx").write_bytes(b"any")
    target = tmp_path / "pets.safetensors"
    assert main(["export", str(tmp_path / "pets.onnx"), "--out", str(target)]) == 2
    assert not target.exists()


def test_a_warning_is_a_line(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "photographs", tmp_path / "mine")
    for path in sorted((tmp_path / "mine" / "pug").iterdir())[1:]:
        path.unlink()
    said = petnb("check", "mine", "--rows", "1", cwd=tmp_path).stderr.splitlines()
    warned = [line for line in said if "'pug' (1)" in line]
    assert len(warned) == 1
    assert warned[0].startswith("petnb: ")
    assert not [line for line in said if "Warning" in line or "return" in line]


def test_features_that_were_kept_change_nothing(place: Path) -> None:
    words = ["train", "--data", str(place / "photographs"), "--recipe", "fast", "--epochs", "1"]
    kept, models = place / "features", []
    for name in ("first", "second"):
        run = place / name
        assert main([*words, *SMALL, "--cache-folder", str(kept), "--out", str(run)]) == 0
        models.append((read_model(run / "model.safetensors")[0], sorted(kept.iterdir())))
        assert "cache_folder" not in tomllib.loads((run / "config.toml").read_text("utf-8"))
    (first, files), (second, files_then) = models
    assert files
    assert files == files_then
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_check_fails_for_what_is_grave_only(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(place / "photographs", tmp_path / "mine")
    assert set(GRAVE) <= set(FINDINGS)
    code, told, _ = answer(capsys, "check", tmp_path / "mine")
    assert code == 0, told["counts"]
    assert answer(capsys, "check", tmp_path / "mine", "--strict")[0] == bool(told["counts"])
    one = next((tmp_path / "mine" / "pug").iterdir())
    one.write_bytes(one.read_bytes()[:300])
    code, told, shown = answer(capsys, "check", tmp_path / "mine", "--csv", tmp_path / "found.csv")
    assert code == 1
    assert told["counts"]["cannot be decoded"] == 1
    assert "to be mended: cannot be decoded" in shown
    assert one.name in (tmp_path / "found.csv").read_text(encoding="utf-8")


def test_lr_find(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure = tmp_path / "curve.png"
    words = ["--data", place / "photographs", "--out", figure, *SMALL]
    code, told, shown = answer(capsys, "lr-find", *words)
    assert code == 0
    assert figure.stat().st_size
    assert told["lr"] is None or told["range"][0] <= told["lr"] <= told["range"][2]
    assert "30 images of 3 classes" in shown


# -- Wrong use -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["trian"], "did you mean train?"),
        (["train", "--epoch", "3"], "did you mean --epochs?"),
        (["train", "--recipe", "artcle"], "did you mean article?"),
        (["train", "--augment", "rndaugment"], "did you mean randaugment?"),
        (["train", "--epochs", "many"], "`petnb train --help`"),
        (["train", "--size", "0"], "`petnb train --help`"),
        (["predict", "run", "new", "--top", "0"], "`petnb predict --help`"),
        (["predict", "run"], "`petnb predict --help`"),
        ([], "`petnb --help`"),
    ],
)
def test_wrong_use_is_one_line_and_a_hint(
    words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    told = capsys.readouterr()
    assert told.out == ""
    first, second = told.err.splitlines()
    assert first.startswith("petnb: ")
    assert hint in second


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("epochs = many", "is no TOML"),
        ('epochs = "many"', "invalid int value: 'many'"),
        ("epoch = 3", "unrecognized arguments: --epoch"),
        ("[train]\nepochs = 3", "[train] is a table"),
        ("\udcff", "is no TOML"),
    ],
)
def test_wrong_settings_are_wrong_use(
    text: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert main(["train", "--config", str(file)]) == 2
    assert complaint in capsys.readouterr().err


def test_settings_survive_odd_folders() -> None:
    settings = {"data": 'a "b"\\c\n\x7f 🐶 --epochs', "fine_tune_lr": [1e-6, 1e-4], "seed": 3}
    read = tomllib.loads(to_toml(settings | {"out": None}))
    assert read == settings
    arguments = vars(parse(["train", *cli.words_of(read)]))
    assert {name: arguments[name] for name in settings} == settings


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--data", "photograhs"], "did you mean photographs?"),
        (["--data", "photographs", "--backbone", "renset34"], "did you mean resnet34"),
        (["--data", "photographs", "--classes", "Siamese", "corgy"], "corgi"),
        (["--data", "photographs", "--average", "2"], "average is 2.0; it is"),
        (["--data", "photographs", "--sure", "1"], "share of right answers is 1.0; it is"),
        (["--data", "photographs", "--temperature", "0"], "temperature is 0.0; it is"),
    ],
)
def test_a_slip_in_a_name_is_recognised(
    words: list[str],
    hint: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    assert main(["train", *words]) in (1, 2)
    told = capsys.readouterr().err
    assert hint in told
    assert len(told.splitlines()) <= 2
    assert not (place / "runs").exists()


def test_a_hint_is_about_paths_only_where_one_is_missing(
    place: Path,
    trained: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("run", "empt").touch()  # Like a word of what is said, but nobody meant it
    Path("empt").touch()
    data = str(place / "photographs")
    assert main(["train", "--data", data, "--out", "run", *SMALL]) == 1
    told = capsys.readouterr().err
    assert "run is not empty" in told
    assert "hint" not in told
    photograph = shutil.copy(next((place / "new").iterdir()), "pug.jpg")
    assert main(["predict", str(place / "run"), "pgu.jpg", photograph]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "hint: did you mean pug.jpg?"


def test_check_finds_near_twins_across_the_split_until_they_are_kept_together(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(place / "photographs", tmp_path / "mine")
    for path in sorted((tmp_path / "mine").rglob("*.jpg")):
        copy, again = (path.with_name(f"{path.stem}{end}.jpg") for end in ("-copy", "-again"))
        if path.parent.name == "pug":  # The same bytes: kept together anyway
            shutil.copy(path, copy)
        with Image.open(path) as image:
            image.save(again, quality=60)
    words = ["check", tmp_path / "mine"]
    code, told, _ = answer(capsys, *words)
    assert code == 1
    leaks = [Path(row["path"]) for row in told["findings"] if row["finding"] == "leak"]
    assert leaks
    code, told, _ = answer(capsys, *words, "--groups", "duplicates")
    assert code == 0
    assert told["counts"]["exact duplicate"] == 10
    assert told["counts"]["near duplicate"] == 30


def test_broken_files_are_named_with_the_ways_on(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(place / "photographs", tmp_path / "mine")
    for path in list((tmp_path / "mine" / "pug").iterdir())[:3]:
        path.write_bytes(b"")
    code, told, shown = answer(capsys, "train", "--data", tmp_path / "mine", *SMALL)
    assert code == 1
    assert "3 of 30 files" in told["error"]
    assert "--on-bad skip" in told["hint"]
    assert len(shown.splitlines()) == 2


def test_what_was_not_foreseen_is_a_line_and_debug_shows_where(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(arguments: Namespace) -> dict[str, Any]:
        raise RuntimeError("boom\nand more")

    monkeypatch.setattr(cli, "train", broken)
    assert main(["train"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "petnb: boom", "hint: this was not foreseen; --debug shows where it happened"
    ]  # fmt: skip
    for words in (["--debug", "train"], ["train", "--debug"]):
        with pytest.raises(RuntimeError, match="boom"):
            main(words)


# -- Help ----------------------------------------------------------------------------------------


def subparsers() -> dict[str, Parser]:
    """The commands by name."""
    (commands,) = (a for a in make_parser()._actions if a.dest == "command")
    assert isinstance(commands.choices, dict)
    return commands.choices


def examples() -> Iterator[str]:
    """Each line that the help offers to copy, without what is said about it."""
    for parser in (make_parser(), *subparsers().values()):
        for line in (parser.epilog or "").splitlines():
            if line.startswith("  petnb"):
                yield re.split(r"\s{2,}| \|", line.strip())[0]


def test_each_command_shows_examples() -> None:
    verbs = {"train", "lr-find", "predict", "try", "report", "check", "export"}
    assert set(subparsers()) == verbs
    for parser in subparsers().values():
        assert "examples:\n  petnb" in (parser.epilog or "")
        assert all(action.help for action in parser._actions)


@pytest.mark.parametrize("line", list(examples()))
def test_each_example_is_right(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("run", "config.toml").write_text("seed = 3\n")
    assert parse(shlex.split(line)[1:]).command in subparsers()


def test_what_the_help_lists_is_what_there_is() -> None:
    options = {action.dest: action for action in subparsers()["train"]._actions}
    assert list(options["recipe"].choices or ()) == list(RECIPES)
    assert list(named_augmentations(64)) == list(AUGMENTATIONS)
    assert {field.name for field in fields(Recipe)} <= set(options)
    assert all(options[field.name].default is None for field in fields(Recipe))


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
from petnb.cli import main
for words in (["--help"], ["train", "--help"], ["--version"]):
    try:
        main(words)
    except SystemExit as end:
        assert end.code == 0
assert main(["trian"]) == 2
print(sorted(set({HEAVY}) & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


# -- Terminals -----------------------------------------------------------------------------------


def read_until(terminal: int, sign: str) -> str:
    """What a terminal shows, up to a sign or to the end."""
    shown = b""
    while sign.encode() not in shown:
        try:
            more = os.read(terminal, 4096)
        except OSError:  # Linux: the other side has gone
            break
        if not more:
            break
        shown += more
    return shown.decode(errors="replace")


def test_a_terminal_shows_a_bar_and_control_c_ends_it(place: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        termios.tcsetwinsize(0, (24, 80))
        os.chdir(place)
        os.environ["PYTHONPATH"] = str(ROOT)
        words = ["train", "--data", "photographs", "--epochs", "300", "--out", "stopped", *SMALL]
        os.execv(sys.executable, [*LINE, *words])
    shown = read_until(terminal, "training:")
    assert "training:" in shown, shown
    os.write(terminal, b"\x03")
    rest = read_until(terminal, "no such sign")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 130, rest
    assert "petnb: stopped" in rest
    assert "Traceback" not in rest
    assert (place / "stopped" / "config.toml").is_file()


def test_a_reader_that_goes_away_is_no_error(place: Path, trained: Any) -> None:
    reader = f"{shlex.join(LINE)} predict run new; echo $? >&2"
    done = subprocess.run(
        ["bash", "-c", f"({reader}) | true"], cwd=place, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "141"


def test_an_unknown_option_of_one_command_is_looked_for_there() -> None:
    with pytest.raises(WrongUseError) as refused:
        parse(["check", "folder", "--strickt"])
    assert refused.value.hint == "did you mean --strict?"
