"""The report as a file; what it does in a browser is in test_browser.py."""

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from made_up import made_up_answers

from petnb import ImageData, Interpretation
from petnb.report import KEPT, as_data, to_html, write_report

HOSTILE = ["</script><script>x()</script>", "<!--<script>", "\u2028", '"&amp;', "$&", "{title}"]


@pytest.fixture(scope="module")
def interp(tmp_path_factory: pytest.TempPathFactory) -> Interpretation:
    root = tmp_path_factory.mktemp("pets")
    data = ImageData.drawn_pets(images_per_breed=6, pixels=64, root=root, valid_pct=0.5)
    return made_up_answers(data)


def data_in(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def with_names(interp: Interpretation, names: list[str]) -> Interpretation:
    vocab = [*names, *interp.vocab[len(names) :]]
    return Interpretation(interp.probs, interp.targets, interp.losses, interp.items, vocab)


@pytest.mark.parametrize("name", HOSTILE)
def test_data_between_tags_comes_back(name: str) -> None:
    text = as_data({"name": [name]})
    assert json.loads(text) == {"name": [name]}
    assert re.search(r"[<>&\u2028]", text) is None


def test_the_policy_names_what_is_in_the_page(interp: Interpretation) -> None:
    page = to_html(with_names(interp, HOSTILE), title=HOSTILE[0])
    for kind, tag in (("script", "<script>"), ("style", "<style>")):
        (content,) = re.findall(f"{tag}(.*?)</{kind}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in page
    assert data_in(page)["vocab"][: len(HOSTILE)] == HOSTILE
    assert re.findall(r"<script[^>]*>", page) == [
        '<script type="application/json" id="data">', "<script>"
    ]  # fmt: skip
    assert re.search(r"""(src|href)=|url\(|@import|https?:""", page.split('id="data"')[0]) is None


def test_every_image_is_there_and_the_worst_have_pictures(interp: Interpretation) -> None:
    findings = pd.DataFrame({"path": [interp.items["path"][0]] * 2, "finding": ["blurred", "tiny"]})
    rows = data_in(to_html(interp, images=5, findings=findings))["rows"]
    assert len(rows) == len(interp.targets)
    assert [bool(row["picture"]) for row in rows] == [True] * 5 + [False] * (len(rows) - 5)
    assert [row["loss"] for row in rows] == sorted((row["loss"] for row in rows), reverse=True)
    assert sorted(row["finding"] for row in rows)[-1] == "blurred, tiny"


def test_pictures_that_cannot_be_read_are_counted(interp: Interpretation) -> None:
    items, folder = interp.items.copy(), Path(interp.items["path"][0]).parent
    items.loc[interp.top_losses(2).index, "path"] = [f"{folder}/gone/1.jpg", f"{folder}/gone/2.jpg"]
    lost = Interpretation(interp.probs, interp.targets, interp.losses, items, interp.vocab)
    with pytest.warns(UserWarning, match=r"2 of 5 images cannot be read, such as .*gone/1\.jpg"):
        page = to_html(lost, images=5)
    assert "; 2 pictures could not be read</p>" in page
    pictures = [bool(row["picture"]) for row in data_in(page)["rows"]]
    assert pictures[:6] == [False, False, True, True, True, False]


def test_from_a_run_folder(interp: Interpretation, tmp_path: Path) -> None:
    interp.save(tmp_path / KEPT)
    here = interp.to_html(tmp_path / "new" / "here.html")
    there = write_report(tmp_path, tmp_path / "there.html")
    assert here.read_bytes() == there.read_bytes()
    with pytest.raises(FileNotFoundError, match=f"no interpretation at .*{KEPT}"):
        write_report(tmp_path / "new", tmp_path / "other.html")
    assert not (tmp_path / "other.html").exists()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["here.html"]
