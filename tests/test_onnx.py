"""ONNX: any family, any number of images, the same numbers as PyTorch, nothing half written."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from petnb import onnx_export
from petnb.data import ImageData
from petnb.inference import Predictor, TorchScorer
from petnb.interpretation import interpret
from petnb.learner import Learner, vision_learner, write_model
from petnb.model import HeadName
from petnb.onnx_export import TOLERANCE, OnnxScorer, compare_speed, export_onnx, load_onnx

for library in onnx_export.NEEDED:
    pytest.importorskip(library)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return ImageData.drawn_pets(images_per_breed=12, pixels=128, size=64, workers=0)


@pytest.fixture(scope="module")
def learn(data: ImageData) -> Learner:
    learn = vision_learner(data, precision="float32", show_progress=False)
    learn.fit_one_cycle(2)
    return learn


@pytest.fixture(scope="module")
def files(learn: Learner, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("model")
    file = learn.export(folder / "pets.safetensors", temperature=1.3, threshold=0.4, card="# Pets")
    return file, export_onnx(file)


def test_validation_predict_and_onnx_agree(
    learn: Learner, data: ImageData, files: tuple[Path, Path]
) -> None:
    interp = interpret(learn)
    paths = list(data.on_side("valid")["path"])
    said = (torch.from_numpy(interp.probs).log() / 1.3).softmax(dim=1)
    by_torch = Predictor.load(files[0]).probabilities(paths)
    by_onnx = Predictor.load(files[1]).probabilities(paths)
    assert torch.allclose(by_torch, said, atol=1e-5)
    assert torch.allclose(by_onnx, said, atol=TOLERANCE)


def test_answers_and_header_travel(data: ImageData, files: tuple[Path, Path]) -> None:
    ours, theirs = (Predictor.load(file) for file in files)
    paths = list(data.on_side("valid")["path"][:10])
    assert theirs.predict(paths)["answer"].equals(ours.predict(paths)["answer"])
    assert (theirs.vocab, theirs.thresholds, theirs.card) == (
        ours.vocab, ours.thresholds, ours.card,
    )  # fmt: skip
    assert theirs.predict(paths, views=2)["label"].tolist()


@pytest.mark.parametrize("n", [1, 2, 3, 17])
def test_any_number_of_images(files: tuple[Path, Path], n: int) -> None:
    images = torch.randint(0, 256, (n, 3, 64, 64), dtype=torch.uint8)
    found = load_onnx(files[1]).scorer(images)
    assert found.shape == (n, len(Predictor.load(files[1]).vocab))
    assert torch.allclose(found.sum(1), torch.ones(n), atol=1e-5)


@pytest.mark.parametrize(
    ("backbone", "head"),
    [("test_resnet", "fastai"), ("test_vit", "linear")],
)
def test_families(data: ImageData, tmp_path: Path, backbone: str, head: HeadName) -> None:
    size = 160 if backbone == "test_vit" else 64
    shown = ImageData(data.items, data.vocab, data.root, size=size) if size != 64 else data
    learn = vision_learner(shown, backbone, head=head, pretrained=False, precision="float32")
    for parameter in learn.model.head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    file = write_model(learn, tmp_path / "any.safetensors")
    paths = list(data.on_side("valid")["path"][:5])
    ours, theirs = Predictor.load(file), Predictor.load(export_onnx(file))
    probabilities = ours.probabilities(paths)
    assert probabilities.std() > 0.01
    assert torch.allclose(probabilities, theirs.probabilities(paths), atol=TOLERANCE)


def test_opset_and_metadata(files: tuple[Path, Path]) -> None:
    import onnx

    model = onnx.load(files[1])
    onnx.checker.check_model(model)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [18]
    header = json.loads({entry.key: entry.value for entry in model.metadata_props}["petnb"])
    assert header["precision"] == "float32"
    assert "history" not in header


def test_a_wrong_translation_is_not_kept(
    learn: Learner, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def translate_wrongly(scorer: TorchScorer, header: object, path: Path) -> None:
        shutil.copy(files[1], path)  # Of another temperature

    monkeypatch.setattr(onnx_export, "write_onnx", translate_wrongly)
    with pytest.raises(ArithmeticError, match="differs from PyTorch"):
        export_onnx(write_model(learn, tmp_path / "a.safetensors"), tmp_path / "wrong.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_missing_library_is_named(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "NEEDED", ("onnx", "no_such_library"))
    with pytest.raises(ModuleNotFoundError, match=r"no_such_library: pip install 'petnb\[onnx\]'"):
        export_onnx(files[0])


def test_strangers_are_refused(tmp_path: Path, files: tuple[Path, Path]) -> None:
    stranger = tmp_path / "cut.onnx"
    stranger.write_bytes(files[1].read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cut\.onnx is not an ONNX file of petnb"):
        OnnxScorer(stranger)
    with pytest.raises(FileNotFoundError, match="no model file"):
        Predictor.load(tmp_path / "missing.onnx")


def test_speed_is_compared(data: ImageData, files: tuple[Path, Path]) -> None:
    both = {"PyTorch": Predictor.load(files[0]), "onnxruntime": Predictor.load(files[1])}
    took = compare_speed(both, data.items["path"][0], batches=(1, 3), repeats=1)
    assert list(took.index) == list(both)
    assert list(took.columns) == ["batch of 1", "batch of 3"]
    assert (took > 0).all(axis=None)


def test_photographs(photographs: Path, files: tuple[Path, Path]) -> None:
    some = [str(path) for path in sorted((photographs / "images").glob("*.jpg"))[::30]]
    ours, theirs = (Predictor.load(file).probabilities(some).numpy() for file in files)
    assert np.allclose(ours, theirs, atol=TOLERANCE)
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).all()
