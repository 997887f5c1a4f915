"""The journey on real photographs; skipped where `PETNB_PHOTOS` does not name them."""

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from petnb.cli import main
from petnb.data import ImageData, open_image
from petnb.inference import Predictor
from petnb.interpretation import interpret
from petnb.learner import Learner, vision_learner
from petnb.onnx_export import TOLERANCE, export_onnx


@pytest.fixture(scope="module")
def official(photographs: Path) -> ImageData:
    return ImageData.oxford_pets(photographs, valid="official")


@pytest.fixture(scope="module")
def trained(official: ImageData) -> Learner:
    learn = vision_learner(official)
    learn.fit_one_cycle(2)
    return learn


def test_official_split(official: ImageData) -> None:
    assert official.items["split"].value_counts().to_dict() == {"train": 672, "valid": 221}
    assert len(official.vocab) == 37
    assert official.vocab[0] == "Abyssinian"
    assert official.vocab[-1] == "yorkshire_terrier"
    counts = official.class_counts().sum(axis=1)
    assert (counts == 52).sum() == 13
    assert counts[counts != 52].between(7, 12).all()


def test_parent_folder_serves_as_root(photographs: Path, official: ImageData) -> None:
    again = ImageData.oxford_pets(photographs.parent, valid="official")
    assert again.items.equals(official.items)


def test_stratified_split_has_every_breed_on_both_sides(photographs: Path) -> None:
    data = ImageData.oxford_pets(photographs)
    assert (data.class_counts() > 0).all(axis=None)


def test_every_photograph_decodes(official: ImageData) -> None:
    sizes = [open_image(path).size for path in official.items["path"]]
    assert len(sizes) == 893
    assert min(min(size) for size in sizes) > 50


def test_names_give_the_same_labels_as_the_lists(photographs: Path, official: ImageData) -> None:
    by_name = ImageData.from_name_re(photographs / "images")
    assert by_name.vocab == official.vocab
    assert len(by_name.items) == 893


def test_two_epochs_of_the_head_name_most_breeds(trained: Learner) -> None:
    scores = trained.validate()
    assert scores["accuracy"] > 0.75
    assert scores["macro_accuracy"] > 0.7


def test_predictor_says_what_validation_said(trained: Learner, tmp_path: Path) -> None:
    interp = interpret(trained)
    predictor = Predictor.load(trained.export(tmp_path / "pets.safetensors"))
    some = list(interp.items["path"][:40])
    assert np.allclose(predictor.probabilities(some).numpy(), interp.probs[:40], atol=1e-5)


def test_onnx_says_what_the_predictor_says(trained: Learner, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    file = trained.export(tmp_path / "pets.safetensors")
    some = list(trained.data.on_side("valid")["path"][:40])
    exact, onnx = Predictor.load(file, precision="float32"), Predictor.load(export_onnx(file))
    assert np.allclose(onnx.probabilities(some), exact.probabilities(some), atol=TOLERANCE)
    assert onnx.predict(some)["label"].equals(exact.predict(some)["label"])


def test_the_same_numbers_three_ways(
    trained: Learner, official: ImageData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Validation, the command and ONNX, of one float32 model on photographs that it never saw."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    held_out = official.items[official.items["split"] == "valid"][::6]
    items = pd.concat([official.items[official.items["split"] == "train"], held_out])
    with warnings.catch_warnings(action="ignore"):  # Of breeds that are not among the few
        few = ImageData(items.reset_index(drop=True), official.vocab, official.root, size=224)
    learn = vision_learner(few, precision="float32", show_progress=False)
    learn.model.load_state_dict(trained.model.state_dict())
    validated = interpret(learn).probs.max(axis=1)
    file = learn.export(tmp_path / "pets.safetensors")
    paths = list(few.on_side("valid")["path"])
    for model, tolerance in ((file, 1e-5), (export_onnx(file), TOLERANCE)):
        assert main(["predict", str(model), *paths, "--json"]) == 0
        said = [row["probability"] for row in json.loads(capsys.readouterr().out)["answers"]]
        assert len(said) == len(held_out) == 37
        assert np.allclose(said, validated, atol=tolerance)
