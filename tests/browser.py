"""A real browser for the tests: Debian's Chromium, JupyterLab or Notebook 7, and nothing else.

Everything listens on 127.0.0.1, with configuration folders of its own. `Watch` writes down each
address that the browser asks for, so that a test can say that none is elsewhere.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import nbformat

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
]
APPS = {"lab": ("jupyterlab", "LabApp"), "notebook": ("notebook", "JupyterNotebookApp")}
PLACES = {"lab": "/lab/tree/{}?reset", "notebook": "/notebooks/{}"}
IDLE = "window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
RUN = "() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }"
COUNT = "() => window.jupyterapp.shell.currentWidget.content.widgets.length"


def chromium() -> str | None:
    """Where the browser is; None if there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@contextmanager
def browser() -> Iterator["Browser"]:
    """Chromium without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        yield started
        started.close()


def answer(address: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until the server answers. Raises with its log if it ends or never does."""
    for _ in range(900):
        try:
            urllib.request.urlopen(address, timeout=2).close()
            return
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.1)
    raise RuntimeError(f"the server at {address} did not start:\n{log.read_text()}")


def free_port() -> int:
    """A port of this machine that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def apart(own: Path, *more: str) -> dict[str, str]:
    """An environment in which Jupyter's settings, and `more`, lie in a folder of its own."""
    places = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", *more)
    own_places = {place: str(own / place) for place in places}
    return os.environ | own_places | {"PYTHONPATH": str(ROOT)}


@contextmanager
def serving(
    words: list[str], address: str, environment: dict[str, str], log: Path, folder: Path
) -> Iterator[None]:
    """A server, from when it answers at `address` until the end of the block."""
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=folder,
        )  # fmt: skip
        try:
            answer(address, process, log)
            yield
        finally:
            process.terminate()
            process.wait(30)


@contextmanager
def server(kind: str, folder: Path) -> Iterator[str]:
    """JupyterLab ("lab") or Notebook 7 ("notebook") on the files of a folder; its address."""
    (module, app), port = APPS[kind], free_port()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        own = Path(name)
        settings = "JUPYTERLAB_SETTINGS_DIR"
        environment = apart(own, settings, "JUPYTERLAB_WORKSPACES_DIR")
        news = own / settings / "@jupyterlab" / "apputils-extension"
        news.mkdir(parents=True)
        (news / "notification.jupyterlab-settings").write_text(
            '{"fetchNews": "false", "checkForUpdates": false}'
        )
        words = [module, "--no-browser", "--allow-root", f"--port={port}",
                 "--ServerApp.ip=127.0.0.1", "--IdentityProvider.token=", "--ServerApp.password=",
                 f"--{app}.expose_app_in_browser=True",
                 f"--ServerApp.root_dir={folder}"]  # fmt: skip
        address = f"http://127.0.0.1:{port}"
        with serving(words, f"{address}/api/status", environment, own / "log", folder):
            yield address


def write_notebook(path: Path, *cells: str) -> Path:
    """A notebook of these code cells."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, path)
    return path


def open_notebook(page: "Page", address: str, name: str, kind: str, run: bool = True) -> None:
    """Open a notebook, wait for its kernel, and run all its cells."""
    page.goto(address + PLACES[kind].format(name))
    page.wait_for_function("window.jupyterapp", timeout=90_000)
    page.evaluate("async () => { await window.jupyterapp.restored }")
    page.wait_for_function(IDLE, timeout=90_000)
    if run:
        page.evaluate(RUN)


class Watch:
    """What a page asks for, and what it complains of."""

    def __init__(self, page: "Page") -> None:
        self.asked: list[str] = []
        self.errors: list[str] = []
        page.context.on("request", lambda request: self.asked.append(request.url))
        page.on("websocket", lambda socket: self.asked.append(socket.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def elsewhere(self) -> list[str]:
        """The addresses that are not on this machine."""
        here = ("data", "blob", "file", "about")
        found = [(url, urlsplit(url)) for url in self.asked]
        return [url for url, parts in found
                if parts.scheme not in here and parts.hostname != "127.0.0.1"]  # fmt: skip
