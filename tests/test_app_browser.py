"""The page as people use it: by its buttons in Python, and served by Voila to a real browser."""

import base64
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from browser import Watch, apart, browser, chromium, free_port, serving

from petnb.app import HEAT, MOST_BYTES, POLICY, SEEN, WHOLE, TryIt, as_png, write_app
from petnb.data import ImageData, open_image
from petnb.inference import Predictor
from petnb.learner import Learner, vision_learner

HOSTILE = "<img src=x onerror=document.title='struck'>"
HEADER = "async () => (await fetch('/')).headers.get('content-security-policy')"
DROP = """(root, [name, content]) => {
  const data = new DataTransfer()
  const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0))
  data.items.add(new File([bytes], name, {type: "image/jpeg"}))
  const told = {dataTransfer: data, bubbles: true, cancelable: true}
  return root.dispatchEvent(new DragEvent("drop", told))  // False: the browser keeps its page
}"""
FETCH = "() => fetch('https://icons.example/').then(() => 'went', () => 'refused')"


@pytest.fixture(scope="module")
def learn() -> Learner:
    data = ImageData.drawn_pets(images_per_breed=12, pixels=128, size=64, workers=0)
    learn = vision_learner(data, show_progress=False)
    learn.fit_one_cycle(2)
    learn.data.vocab[0] = HOSTILE  # From here on it is called so
    return learn


@pytest.fixture(scope="module")
def folder(learn: Learner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the page in it."""
    place = tmp_path_factory.mktemp("run")
    learn.export(place / "model.safetensors")
    write_app(place, title="Which pet is it?")
    return place


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    return Predictor.load(folder / "model.safetensors")


def upload(page: TryIt, name: str, content: bytes) -> None:
    """What the browser does when somebody has chosen a file."""
    told = {"name": name, "type": "", "size": len(content), "last_modified": datetime.now()}
    page.upload.value = ({**told, "content": memoryview(content)},)


# -- By its buttons ------------------------------------------------------------------------------


def test_upload_answers_like_predict(learn: Learner, predictor: Predictor) -> None:
    path = learn.data.items["path"][0]
    page = TryIt(predictor)
    upload(page, "my pet.jpg", Path(path).read_bytes())
    expected = predictor.predict(path)
    assert page.answer.value == expected.answer
    assert [bar.name.value for bar in page.bars] == [name for name, _ in expected.top(5)]
    assert [bar.length.value for bar in page.bars] == [share for _, share in expected.top(5)]
    assert page.status.value == "my pet.jpg"
    assert page.upload.value == ()


def test_three_pictures(learn: Learner, predictor: Predictor) -> None:
    page = TryIt(predictor)
    page.show(learn.data.items["path"][0])
    shown = []
    for view in (WHOLE, SEEN, HEAT):
        page.view.value = view
        shown.append(bytes(page.picture.value))
    assert len(set(shown)) == 3
    assert all(png.startswith(b"\x89PNG") for png in shown)


@pytest.mark.parametrize("content", [b"", b"<html>", b"\xff\xd8\xff\xe0"])
def test_a_wrong_file_clears_the_page(learn: Learner, predictor: Predictor, content: bytes) -> None:
    page = TryIt(predictor)
    page.show(learn.data.items["path"][0])
    upload(page, "wrong.jpg", content)
    assert "cannot decode" in page.status.value
    assert page.answer.value == ""
    assert all(bar.box.layout.visibility == "hidden" for bar in page.bars)
    assert page.picture.layout.visibility == "hidden"
    assert page.view.disabled
    upload(page, "right.jpg", Path(learn.data.items["path"][0]).read_bytes())
    assert page.status.value == "right.jpg"


def test_what_is_too_large_is_refused_in_words(learn: Learner, predictor: Predictor) -> None:
    page, photograph = TryIt(predictor), Path(learn.data.items["path"][0]).read_bytes()
    upload(page, "right.jpg", photograph + bytes(MOST_BYTES - len(photograph)))
    assert page.status.value == "right.jpg"
    upload(page, "large.jpg", photograph + bytes(MOST_BYTES + 1 - len(photograph)))
    assert "large.jpg has 10.0 MB; up to 10 MB are taken" in page.status.value
    assert page.answer.value == ""
    assert f"Up to {MOST_BYTES / 1e6:.0f} MB" in TryIt(predictor).status.value


def test_a_second_upload_waits_for_nobody(learn: Learner, predictor: Predictor) -> None:
    page, at_work, go_on = TryIt(predictor), threading.Event(), threading.Event()
    predict = predictor.predict

    def slow(image: Any) -> Any:
        at_work.set()
        go_on.wait(30)
        return predict(image)

    page.predictor = Predictor(predictor.header, predictor.scorer)
    page.predictor.predict = slow  # type: ignore[assignment, method-assign]
    first, second = (Path(path).read_bytes() for path in learn.data.items["path"][:2])
    working = threading.Thread(target=upload, args=(page, "first.jpg", first))
    working.start()
    at_work.wait(30)
    upload(page, "second.jpg", second)
    assert page.status.value.startswith("busy")
    go_on.set()
    working.join(30)
    assert page.status.value == "first.jpg"


def test_what_nobody_expected_is_on_the_page_and_in_the_log(
    learn: Learner, predictor: Predictor, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(images: Any) -> Any:
        raise RuntimeError("the disk burns")

    page = TryIt(Predictor(predictor.header, fail))
    upload(page, "a.jpg", Path(learn.data.items["path"][0]).read_bytes())
    assert page.status.value == "RuntimeError: the disk burns"
    assert "the disk burns" in caplog.text
    assert not page.lock.locked()


def test_where_it_looks_needs_pytorch(learn: Learner, predictor: Predictor) -> None:
    page = TryIt(Predictor(predictor.header, lambda images: predictor.scorer(images)))
    page.show(learn.data.items["path"][0])
    page.view.value = HEAT
    assert "needs gradients" in page.status.value
    page.view.value = SEEN
    assert page.picture.layout.visibility == "visible"


def test_unsure_is_said(learn: Learner, tmp_path: Path) -> None:
    never = Predictor.load(learn.export(tmp_path / "a.safetensors", threshold=1.0))
    page = TryIt(never, top=99)
    page.show(learn.data.items["path"][0])
    assert page.answer.value == "not sure"
    assert len(page.bars) == len(learn.data.vocab)


def test_odd_shapes_fit_the_page(tmp_path: Path) -> None:
    from PIL import Image

    for size in ((1, 1), (4000, 1), (1, 3000), (3000, 2000)):
        assert as_png(Image.new("RGB", size)).startswith(b"\x89PNG")


def test_no_model_no_page(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors in"):
        write_app(tmp_path)


# -- In a browser --------------------------------------------------------------------------------


@contextmanager
def served(folder: Path, own: Path, *more: str) -> Iterator[str]:
    """`petnb try`, on a free port of this machine, from another folder; its address."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    line = "from petnb.cli import main\n\nraise SystemExit(main())\n"
    (own / "petnb_line.py").write_text(line, encoding="utf-8")
    words = ["petnb_line", "try", str(folder), "--no-browser", f"--port={port}", *more]
    ready = f"{address}/voila/static/voila.js"
    with serving(words, ready, apart(own), own / "log", own):
        yield address


@pytest.fixture
def photograph(learn: Learner) -> Path:
    """A real one where there is one, else a drawn one."""
    if named := os.environ.get("PETNB_PHOTOS"):
        return sorted(Path(named, "images").glob("*.jpg"))[5].resolve()
    return Path(learn.data.items["path"][0])


def test_voila_serves_the_page(
    folder: Path, predictor: Predictor, photograph: Path, tmp_path: Path
) -> None:
    for needed in ("voila", "playwright"):
        if find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed: pip install 'petnb[app]' playwright")
    if chromium() is None:
        pytest.skip("there is no Chromium on this machine")
    expected = predictor.predict(open_image(photograph))
    wrong = tmp_path / "page.jpg"
    wrong.write_bytes(b"<html>404</html>")
    title = ("--title", "Which pet is it?")
    with served(folder, tmp_path, *title) as address, browser() as started:
        page = started.new_page(viewport={"width": 1100, "height": 640})
        watch = Watch(page)
        page.goto(address)
        root = page.locator(".petnb-try-it")
        root.get_by_text("Which pet is it?").wait_for(timeout=90_000)
        assert page.get_by_text("TryIt(Predictor").count() == 0  # No code is shown

        def choose(file: Path) -> None:
            with page.expect_file_chooser() as chooser:
                root.locator("button.widget-upload").click()
            chooser.value.set_files(file)

        choose(photograph)
        root.get_by_text(photograph.name).wait_for(timeout=60_000)
        assert root.get_by_text(f"{expected.probability:.1%}").first.is_visible()
        names = root.locator(".widget-label")
        assert {name for name, _ in expected.top(5)} <= set(names.all_inner_texts())
        first = root.locator("img").get_attribute("src")
        root.get_by_text(HEAT).click()
        page.wait_for_function(
            "before => document.querySelector('.petnb-try-it img').src !== before", arg=first
        )
        page.screenshot(path=os.environ.get("PETNB_SCREENSHOT", tmp_path / "page.png"))

        large = tmp_path / "large.jpg"  # More than Jupyter's own server would take
        large.write_bytes(photograph.read_bytes() + bytes(MOST_BYTES * 11 // 10))
        choose(large)
        root.get_by_text("up to 10 MB are taken").wait_for(timeout=60_000)
        assert not root.locator("img").is_visible()

        content = base64.b64encode(photograph.read_bytes()).decode()
        assert root.evaluate(DROP, ["dropped.jpg", content]) is False
        root.get_by_text("dropped.jpg").wait_for(timeout=60_000)
        assert root.get_by_text(f"{expected.probability:.1%}").first.is_visible()

        choose(wrong)
        root.get_by_text("HTML page").wait_for(timeout=60_000)
        assert not root.locator("img").is_visible()
        assert page.title() != "struck"
        assert watch.errors == []
        assert watch.elsewhere() == []  # Voila's own template would ask for a font of icons
        assert page.evaluate(HEADER) == POLICY
        assert page.evaluate(FETCH) == "refused"
