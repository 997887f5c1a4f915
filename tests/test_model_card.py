"""The model card: true, readable by the Hub's library, and safe whatever a class is called."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml
from huggingface_hub import ModelCard

from petnb.calibration import N_BINS, calibration_error, rescaled
from petnb.data import ImageData
from petnb.inference import Predictor
from petnb.interpretation import Interpretation, interpret
from petnb.learner import Learner, vision_learner
from petnb.losses import wilson_interval
from petnb.model_card import (
    about_calibration,
    as_text,
    markdown_table,
    model_card,
    write_model_card,
)

HOSTILE = ["a|b", "<script>alert(1)</script>", "**bold**", "`code`", "two\nlines", "{name}",
           "![x](http://a.b/c.png)", "---", "# heading", "$x$"]  # fmt: skip


@pytest.fixture(scope="module")
def learn() -> Learner:
    data = ImageData.drawn_pets(images_per_breed=12, pixels=128, size=64, workers=0)
    learn = vision_learner(data, show_progress=False)
    learn.fit_one_cycle(2)
    return learn


@pytest.fixture(scope="module")
def interp(learn: Learner) -> Interpretation:
    return interpret(learn)


def test_numbers_are_those_of_the_interpretation(learn: Learner, interp: Interpretation) -> None:
    card = model_card(learn, interp)
    low, high = wilson_interval(interp.accuracy, len(interp.targets))
    assert f"| {interp.accuracy:.1%} ({low:.1%} to {high:.1%}) |" in card
    assert f"| macro accuracy | {interp.macro_accuracy:.1%} |" in card
    for name in interp.vocab:
        assert f"| {as_text(name)} |" in card
    for actual, predicted, times in interp.most_confused()[:10]:
        assert f"| {as_text(actual)} | {as_text(predicted)} | {times} |" in card


def test_the_folder_is_what_the_hub_wants(
    learn: Learner, interp: Interpretation, tmp_path: Path
) -> None:
    page = write_model_card(learn, interp, tmp_path, "Pets: & 'more'", threshold={"pug": 0.5}
                            if "pug" in interp.vocab else 0.5)  # fmt: skip
    assert {file.name for file in tmp_path.iterdir()} == {
        "README.md", "config.json", "model.safetensors",
    }  # fmt: skip
    read = ModelCard.load(page).data
    assert read.license == "apache-2.0"
    assert read.base_model == "timm/tf_efficientnet_lite0.in1k"
    assert read.model_name == "Pets: & 'more'"
    assert {found.metric_name: found.metric_value for found in read.eval_results or []} == {
        "accuracy": round(interp.accuracy, 4),
        "macro accuracy": round(interp.macro_accuracy, 4),
    }
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert config["vocab"] == learn.data.vocab
    assert "card" not in config
    predictor = Predictor.load(tmp_path / "model.safetensors")
    assert predictor.card == page.read_text("utf-8")


def test_figures_and_settings_of_the_run_are_named(
    learn: Learner, interp: Interpretation, tmp_path: Path
) -> None:
    bare = write_model_card(learn, interp, tmp_path).read_text("utf-8")
    assert "![" not in bare
    assert "config.toml" not in bare
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "confusion_matrix.png").write_bytes(b"")
    (tmp_path / "config.toml").write_text("")
    page = write_model_card(learn, interp, tmp_path).read_text("utf-8")
    assert "![confusion matrix](figures/confusion_matrix.png)" in page
    assert "`config.toml` holds every setting" in page


def test_no_path_of_this_machine(learn: Learner, interp: Interpretation) -> None:
    card = model_card(learn, interp)
    assert str(learn.data.root.parent) not in card
    assert str(Path.home()) not in card


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_text(learn: Learner, interp: Interpretation, name: str) -> None:
    vocab = [name, *interp.vocab[1:]]
    data = replace(learn.data, vocab=vocab)
    odd = Interpretation(interp.probs, interp.targets, interp.losses, interp.items, vocab)
    teacher = vision_learner(data, show_progress=False)
    card = model_card(teacher, odd, name)
    body = card[card.index("\n---", 4) :]
    assert "<script" not in body
    assert not re.search(r"(?<!\\)\]\(http://a", body)
    table = body[body.index("### By class") : body.index("### What it confuses")]
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(rows) == len(vocab) + 2
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5}
    block = yaml.safe_load(card.split("\n---\n")[0])
    assert block["model-index"][0]["name"] == name


def test_a_class_that_was_never_shown(learn: Learner, interp: Interpretation) -> None:
    seen = interp.targets != 0
    part = Interpretation(interp.probs[seen], interp.targets[seen], interp.losses[seen],
                          interp.items[seen], interp.vocab)  # fmt: skip
    assert f"| {as_text(interp.vocab[0])} | 0 |  | not measured |" in model_card(learn, part)


def test_an_untrained_learner_has_a_card(learn: Learner, interp: Interpretation) -> None:
    card = model_card(vision_learner(learn.data, show_progress=False), interp)
    assert "Not trained yet." in card


def test_an_unknown_licence_is_said(learn: Learner, interp: Interpretation) -> None:
    other = vision_learner(learn.data, "test_resnet", pretrained=False, show_progress=False)
    other.model.body.pretrained_cfg = {"classifier": "fc"}
    card = model_card(other, interp)
    assert "The backbone's is unknown" in card
    assert yaml.safe_load(card.split("\n---\n")[0])["license"] == "other"


def test_calibration_with_and_without_temperature(interp: Interpretation) -> None:
    plain = calibration_error(interp.probs, interp.targets)
    told = f"Expected calibration error as trained ({N_BINS} bins): {plain:.3f}."
    assert about_calibration(interp) == told
    mild = calibration_error(rescaled(interp, 2.5).probs, interp.targets)
    assert f"divides scores by 2.5, after which it is {mild:.3f}" in about_calibration(interp, 2.5)
    assert about_calibration(interp, 2.5, "From *me*.") == f"{told} From \\*me\\*."


def test_tables_keep_their_shape() -> None:
    table = markdown_table(pd.DataFrame({"a|b": ["x\ny", "|"], "c": [1, None]}))
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()] == [3] * 4
