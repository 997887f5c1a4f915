"""How pytest tests petnb: each code cell of a notebook is one test, and no test uses the network.

A notebook's cells run in order, in one shell, against the exported library. A cell that is selected
alone first runs those above it. Cells with an export directive are not run: their code is the
library's own module, which the other cells import. `#| eval: false` is honoured, and so are
nbdev's flags: `python -m pytest --nb-flags slow` runs the cells marked `#| slow` too.
"""

import gc
import os
import signal
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import chdir
from ipaddress import ip_address
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import matplotlib
import matplotlib.pyplot as plt
import pytest
from execnb.shell import CaptureShell
from nbdev.config import get_config
from nbdev.process import NBProcessor

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes, which share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# -- Photographs ---------------------------------------------------------------------------------

PHOTOS = "PETNB_PHOTOS"  # the environment variable that names a folder `oxford-iiit-pet`


@pytest.fixture(scope="session")
def photographs() -> Path:
    """The real photographs; a test that asks for them is skipped, saying so, without them."""
    named = os.environ.get(PHOTOS)
    if not named:
        pytest.skip(f"{PHOTOS} is not set: it names a folder oxford-iiit-pet with photographs")
    if not Path(named).is_dir():
        pytest.skip(f"{PHOTOS} is {named!r}, which is not a folder")
    return Path(named).resolve()


# -- No network ----------------------------------------------------------------------------------


class NetworkForbidden(OSError):
    """A test tried to reach `host`, which is not this machine."""

    def __init__(self, host: str) -> None:
        super().__init__(f"the tests use no network, and something tried to reach {host}")
        self.host = host


def is_loopback(host: object) -> bool:
    """Whether `host`, a name or an address, is this machine itself."""
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost"):
        return True
    try:
        return ip_address(str(name)).is_loopback
    except ValueError:  # a name
        return False


def guard_sockets(patch: pytest.MonkeyPatch) -> None:
    """Let sockets reach only loopback addresses and sockets that are files on this machine."""

    def guard_method(method: str) -> None:
        original = getattr(socket.socket, method)

        def guarded(self: socket.socket, *arguments: Any) -> Any:
            address = arguments[-1]
            if self.family in (socket.AF_INET, socket.AF_INET6):
                if not is_loopback(address[0]):
                    raise NetworkForbidden(str(address[0]))
            elif self.family != getattr(socket, "AF_UNIX", None):
                raise NetworkForbidden(f"{address!r} over {self.family!r}")
            return original(self, *arguments)

        patch.setattr(socket.socket, method, guarded)

    for method in ("connect", "connect_ex", "sendto"):
        guard_method(method)

    look_up = socket.getaddrinfo

    def guarded_look_up(host: Any, *arguments: Any, **options: Any) -> Any:
        if not is_loopback(host):
            raise NetworkForbidden(str(host))
        return look_up(host, *arguments, **options)

    patch.setattr(socket, "getaddrinfo", guarded_look_up)


# -- The session ---------------------------------------------------------------------------------

tally = pytest.StashKey[Counter[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--nb-flags`."""
    parser.addoption("--nb-flags", default="", help="flags of cells to run too, such as slow")


def pytest_configure(config: pytest.Config) -> None:
    """Forbid the network, draw without a display, and leave the home folder alone."""
    config.stash[tally] = Counter(passed=0, failed=0, skipped=0)
    patch = pytest.MonkeyPatch()
    config.add_cleanup(patch.undo)
    guard_sockets(patch)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # As in whatever a shell starts with `&`
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Tests of Ctrl-C press it
    patch.setenv("MPLBACKEND", "agg")
    home = tempfile.TemporaryDirectory(prefix="petnb-ipython-", ignore_cleanup_errors=True)
    config.add_cleanup(home.cleanup)
    patch.setenv("IPYTHONDIR", home.name)


def pytest_report_header() -> str:
    """Say at the top whether there are photographs."""
    return f"photographs: {os.environ.get(PHOTOS) or f'none ({PHOTOS} is not set)'}"


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add up what the processes of pytest-xdist counted (each of them collects all cells)."""
    config: pytest.Config = node.config
    counts, found = config.stash[tally], getattr(node, "workeroutput", {}).get("tally", {})
    for fate, count in found.items():
        ran = fate in ("passed", "failed", "skipped")
        counts[fate] = counts[fate] + count if ran else max(counts[fate], count)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send this process's counts to the one that adds them up, if there is one."""
    counts = session.config.stash[tally]
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["tally"] = dict(counts)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Count at the end what became of each code cell."""
    counts = config.stash[tally]
    if total := counts.total():
        listed = ", ".join(f"{count} {fate}" for fate, count in counts.items())
        terminalreporter.section("notebooks")
        terminalreporter.write_line(f"{total} code cells: {listed}")


# -- Notebooks -----------------------------------------------------------------------------------

EXPORTS = {"export", "exporti", "exports"}
IMPORT = """
import {} as _module
globals().update({{name: value for name, value in vars(_module).items() if name[:2] != "__"}})
"""


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> "Notebook | None":
    """Collect the notebooks, but those whose names begin with an underscore, like nbdev."""
    if file_path.suffix == ".ipynb" and not file_path.name.startswith("_"):
        return Notebook.from_parent(parent, path=file_path)
    return None


class Notebook(pytest.File):
    """A notebook, whose code cells are tests that share one shell."""

    cells: list["Cell"]
    module: str | None = None  # what it exports to, from `#| default_exp`
    shell: CaptureShell | None = None
    main: ModuleType  # as it was before the shell came
    failed: "Cell | None" = None  # those below it cannot run

    def collect(self) -> Iterator["Cell"]:
        """The cells that run."""
        flags = set(get_config().tst_flags.split())
        flags -= set(self.config.getoption("--nb-flags").split())
        counts = self.config.stash[tally]
        self.cells = []
        for cell in NBProcessor(self.path).nb.cells:
            directives = cell.directives_
            code = [line for line in cell.source.splitlines() if line and not line.startswith("#")]
            if "default_exp" in directives:
                self.module = directives["default_exp"][0]
            if cell.cell_type != "code" or not code or "nbdev_export(" in cell.source:
                continue
            if directives.keys() & EXPORTS:
                counts["exported (their module is tested)"] += 1
            elif directives.get("eval:", [""])[0].lower() == "false":
                counts["marked eval: false"] += 1
            else:
                self.cells.append(
                    Cell.from_parent(
                        self,
                        name=f"[{cell.idx_}] {code[0].strip()[:60]}",
                        index=cell.idx_,
                        source=cell.source,
                        flags=flags & directives.keys(),
                    )
                )
        yield from self.cells

    def run(self, source: str) -> BaseException | None:
        """Run `source` in the notebook's folder; answer what it raised, if anything."""
        if self.shell is None:
            self.main = sys.modules["__main__"]  # the shell puts its own in its place
            self.shell = CaptureShell(mpl_format="png")
            self.shell.run_line_magic("colors", "nocolor")
            library = get_config().lib_path.name
            if self.module and (error := self.run(IMPORT.format(f"{library}.{self.module}"))):
                return error
        with chdir(self.path.parent):
            self.shell.run(source, verbose=True)
        raised: BaseException | None = self.shell.exc
        return raised

    def teardown(self) -> None:
        """Leave no figure, no setting of matplotlib and no variable to the next notebook."""
        plt.close("all")
        matplotlib.rcdefaults()
        plt.switch_backend("agg")
        if self.shell is not None:
            self.shell.reset()
            self.shell = None
            sys.modules["__main__"] = self.main
        gc.collect()


class Cell(pytest.Item):
    """One code cell."""

    parent: Notebook
    done = False

    def __init__(self, *, index: int, source: str, flags: set[str], **options: Any) -> None:
        super().__init__(**options)
        self.index, self.source, self.flags = index, source, flags

    def runtest(self) -> None:
        """Run the cell, and before it those above it that have not run."""
        if self.flags:
            self.skip(f"marked {', '.join(sorted(self.flags))}")
        for cell in self.parent.cells[: self.parent.cells.index(self) + 1]:
            if self.parent.failed:
                self.skip(f"not reached, since {self.parent.failed.name} failed")
            if not cell.done and not cell.flags:
                cell.execute()

    def execute(self) -> None:
        """Run this cell alone."""
        self.done = True
        error = self.parent.run(self.source)
        self.config.stash[tally]["failed" if error else "passed"] += 1
        if error:
            self.parent.failed = self
            raise error

    def skip(self, reason: str) -> NoReturn:
        """Count the cell as skipped, for `reason`."""
        self.config.stash[tally]["skipped"] += 1
        pytest.skip(f"{self.path.name}: {reason}")

    def reportinfo(self) -> tuple[Path, int, str]:
        """Where pytest says that the cell is."""
        return self.path, self.index, f"{self.path.name} {self.name}"

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> str:
        """The error and the cell that raised it; the traceback stands below, as it was printed."""
        cell = self.parent.failed or self
        return f"{excinfo.typename}: {excinfo.value}\n\n{cell.name}\n{cell.source}"
