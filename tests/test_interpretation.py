"""An interpretation of many images: small in memory, safe to keep, clear about what is missing."""

import io
import pickle
import tracemalloc
import zipfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from petnb.data import ImageData
from petnb.interpretation import Interpretation, from_logits, interpret, similarity_order
from petnb.learner import vision_learner


def synthetic(n: int, classes: int, groups: int = 5, seed: int = 0) -> Interpretation:
    """Answers that are right in two of three cases, and mix up the classes of a group."""
    rng = np.random.default_rng(seed)
    targets = np.arange(n) % classes
    probs = np.full((n, classes), 0.1 / classes, dtype=np.float32)
    said = np.where(rng.random(n) < 2 / 3, targets, (targets + groups * rng.integers(9, size=n)))
    probs[np.arange(n), said % classes] += 0.9
    probs /= probs.sum(axis=1, keepdims=True)
    losses = -np.log(probs[np.arange(n), targets])
    vocab = [f"class {number:03}" for number in range(classes)]
    labels = [vocab[target] for target in targets]
    paths = [f"photographs/{number:06}.jpg" for number in range(n)]
    items = pd.DataFrame({"path": paths, "label": labels, "split": "valid"})
    return Interpretation(probs, targets, losses, items, vocab)


# -- Size ----------------------------------------------------------------------------------------


def test_a_hundred_thousand_images_take_no_memory_beyond_their_arrays() -> None:
    interp = synthetic(100_000, 200)
    tracemalloc.start()
    try:
        interp.top_losses(9)
        interp.most_confused(2)
        interp.per_class()
        interp.classification_report()
        interp.top_k_accuracy(5)
        similarity_order(interp.probs, interp.targets)
        repr(interp)
        left, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < interp.probs.nbytes / 2
    assert left < interp.probs.nbytes / 20


def test_a_matrix_of_200_classes_can_be_read() -> None:
    interp = synthetic(4000, 200)
    axes = interp.plot_confusion_matrix(order="similarity")
    figure = axes.get_figure(root=True)
    assert figure is not None
    assert max(figure.get_size_inches()) <= 10
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    boxes.sort(key=lambda box: box.y0)
    assert len(boxes) >= 20
    assert all(a.y0 + 0.5 * a.height < b.y0 for a, b in pairwise(boxes))
    plt.close("all")


def test_the_numbers_of_37_classes_stay_in_their_cells() -> None:
    interp = synthetic(3700, 37)
    axes = interp.plot_confusion_matrix(normalize=True)
    axes.figure.canvas.draw()
    cell = axes.transData.transform((1, 0))[0] - axes.transData.transform((0, 0))[0]
    assert len(axes.texts) > 100
    assert all(text.get_window_extent().width <= cell for text in axes.texts)
    assert len(axes.get_xticklabels()) == 37
    plt.close("all")


def test_similar_classes_stand_side_by_side() -> None:
    interp = synthetic(20_000, 50)
    order = similarity_order(interp.probs, interp.targets)
    groups = order % 5
    assert (np.diff(groups) != 0).sum() == 4


def test_a_block_shows_the_classes_with_most_mistakes() -> None:
    interp = synthetic(4000, 200)
    interp.probs[:60] = np.eye(200, dtype=np.float32)[7]  # Class 7 is given to sixty images
    axes = interp.plot_confusion_matrix(top=5)
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert len(names) == 5
    assert "class 007" in names
    plt.close("all")


@pytest.mark.parametrize(
    ("options", "told"), [({"order": "alphabet"}, "order"), ({"top": 0}, "top")]
)
def test_unknown_ways_to_draw_a_matrix_are_refused(options: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        synthetic(20, 10).plot_confusion_matrix(**options)


def test_a_title_says_the_four_things_in_the_articles_order(tmp_path: Path) -> None:
    """Prediction, actual class, loss, and the probability of the actual class, not of the other."""
    path = tmp_path / "one.png"
    plt.imsave(path, np.zeros((8, 8, 3)))
    items = pd.DataFrame({"path": [str(path)], "label": "pug", "split": "valid"})
    logits = torch.tensor([[0.9, 0.1]]).log()
    interp = from_logits(logits, torch.tensor([1]), items, ["boxer", "pug"])
    title = interp.plot_top_losses(1).flat[0].get_title()
    assert title == "× boxer\npug\n2.30 / 0.10"
    plt.close("all")


# -- Missing classes, hostile names --------------------------------------------------------------


def test_a_class_without_images_is_shown_as_not_known() -> None:
    logits = torch.tensor([[2.0, 0, 0], [0, 2.0, 0], [2.0, 0, 0]])
    items = pd.DataFrame({"path": ["a", "b", "c"], "label": "x", "split": "valid"})
    interp = from_logits(logits, torch.tensor([0, 1, 1]), items, ["x", "y", "z"])
    table = interp.per_class()
    assert table.loc["z", "images"] == 0
    assert table.loc["z", ["accuracy", "low", "high", "precision"]].isna().all()
    assert table["accuracy"].tolist()[:2] == [1, 0.5]
    assert table["taken for"].tolist() == ["", "x", ""]
    assert interp.macro_accuracy == 0.75
    assert "nan" in interp.classification_report()
    interp.plot_confusion_matrix(order="similarity")
    plt.close("all")


HOSTILE = [
    "$x$ & $y",
    "<script>alert(1)</script>",
    "=cmd|' /C calc'!A0",
    "a\nb",
    "ü \udcff",
    "%s{0}",
]


def test_hostile_names_are_text_in_every_figure(tmp_path: Path) -> None:
    n = len(HOSTILE)
    paths = []
    for number in range(n):
        paths.append(str(tmp_path / f"$pug$_{number}.png"))
        plt.imsave(paths[-1], np.zeros((8, 8, 3)))
    names = [name for name in HOSTILE if "\udcff" not in name] + ["ü"]
    items = pd.DataFrame({"path": paths, "label": names, "split": "valid"})
    logits = torch.eye(n).roll(1, 0)
    interp = from_logits(logits, torch.arange(n), items, names)
    interp.plot_top_losses(3)
    interp.show_results(3)
    axes = interp.plot_confusion_matrix()
    axes.figure.canvas.draw()
    assert {label.get_text() for label in axes.get_xticklabels()} == set(names)
    plt.close("all")


# -- Files ---------------------------------------------------------------------------------------


def test_a_file_gives_everything_back(tmp_path: Path) -> None:
    interp = synthetic(12, 6)
    interp.vocab, interp.split = HOSTILE, "train"
    interp.items["path"] = [f"{name}/{number}.jpg" for number, name in enumerate(HOSTILE * 2)]
    interp.features = np.arange(24, dtype=np.float32).reshape(12, 2)
    again = Interpretation.load(interp.save(tmp_path / "new" / "one.npz"))
    for name in ("probs", "targets", "losses", "features"):
        before, after = getattr(interp, name), getattr(again, name)
        assert before.dtype == after.dtype
        assert np.array_equal(before, after)
    assert again.items.to_dict() == interp.items.to_dict()
    assert (again.vocab, again.split) == (HOSTILE, "train")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["one.npz"]


def test_a_file_finds_images_that_have_moved(tmp_path: Path) -> None:
    data = ImageData.drawn_pets(images_per_breed=2, pixels=64, root=tmp_path / "pets")
    n, items = len(data.items), data.items[["path", "label", "split"]]
    logits, targets = torch.zeros(n, 10), torch.zeros(n, dtype=torch.long)
    interp = replace(from_logits(logits, targets, items, data.vocab), root=data.root)
    kept = interp.save(tmp_path / "one.npz")
    assert Interpretation.load(kept).items.equals(items)
    assert Interpretation.load(kept).root == data.root
    data.root.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=r"3 of 3 images .*load\(file, root=FOLDER\)"):
        Interpretation.load(kept).plot_top_losses(3)
    found = Interpretation.load(kept, root=tmp_path / "moved")
    assert all(Path(path).is_file() for path in found.items["path"])
    assert Interpretation.load(found.save(kept)).root == tmp_path / "moved"


def test_a_folder_that_was_named_from_here_is_found_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interp = synthetic(12, 6)
    interp.root = Path("photographs")
    monkeypatch.chdir(tmp_path)
    kept = interp.save(tmp_path / "one.npz")
    again = Interpretation.load(kept)
    assert again.items["path"][3] == str(tmp_path / "photographs" / "000003.jpg")
    assert interp.compare(again).flipped().empty
    monkeypatch.chdir("/")
    assert Interpretation.load(kept).items.equals(again.items)


class Malicious:
    """What runs a command when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_no_pickle_is_opened(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    np.save(evil := tmp_path / "evil.npz", np.array([Malicious(proof)], dtype=object))
    evil = evil.with_name("evil.npz.npy").rename(evil)
    with pytest.raises(ValueError, match="no interpretation that petnb saved"):
        Interpretation.load(evil)
    evil.write_bytes(pickle.dumps(Malicious(proof)))
    with pytest.raises(ValueError, match="no interpretation that petnb saved"):
        Interpretation.load(evil)
    inside = synthetic(4, 2).save(tmp_path / "inside.npz")
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.array([Malicious(proof)], dtype=object))
    with zipfile.ZipFile(inside, "a") as archive:
        archive.writestr("features.npy", buffer.getvalue())
    with pytest.raises(ValueError, match="no interpretation that petnb saved"):
        Interpretation.load(inside)
    assert not proof.exists()


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = synthetic(50, 5).save(tmp_path / "one.npz")
    content = path.read_bytes()
    for broken in (b"", b"<html>", content[: len(content) // 2]):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"one\.npz is no interpretation"):
            Interpretation.load(path)
    with pytest.raises(FileNotFoundError, match=r"two\.npz"):
        Interpretation.load(tmp_path / "two.npz")


def test_a_failed_save_leaves_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = synthetic(4, 2).save(tmp_path / "one.npz")
    before = path.read_bytes()

    def full(file: io.BufferedWriter, **arrays: np.ndarray) -> None:
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="no space"):
        synthetic(8, 2).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# -- Parts that do not fit -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["probs", "targets", "losses", "features"])
def test_parts_of_other_lengths_are_refused(name: str) -> None:
    parts = {**vars(synthetic(6, 3)), "features": np.zeros((6, 4))}
    parts[name] = parts[name][:5]
    with pytest.raises(ValueError, match=name):
        Interpretation(**parts)


def test_sides_of_the_split() -> None:
    data = ImageData.drawn_pets(images_per_breed=4, pixels=64, size=64)
    learn = vision_learner(data)
    whole = interpret(learn, "train", features=True)
    assert whole.items["path"].tolist() == data.on_side("train")["path"].tolist()
    assert whole.split == "train"
    again = interpret(learn, "train", features=True)  # From what the learner keeps
    assert whole.features is not None
    assert again.features is not None
    assert np.array_equal(whole.features, again.features)
    with torch.inference_mode():
        logits = learn.model.head(torch.from_numpy(whole.features).to(learn.device)).cpu()
    assert np.allclose(logits.softmax(1), whole.probs, atol=1e-6)
    assert not learn.model.head._forward_pre_hooks
    with pytest.raises(
        ValueError, match="no image is on the side 'test'; the data's sides are: train"
    ):
        interpret(learn, "test")
