"""Downloads and archives as the world has them: interrupted, wrong, contended, hostile."""

import gzip
import hashlib
import io
import os
import signal
import ssl
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from petnb import ImageData
from petnb.downloads import PETS_ARCHIVES, check_url, download, download_pets, extract

ROOT = Path(__file__).resolve().parent.parent
CONTENT = bytes(range(256)) * 4000  # about a megabyte
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `files`; what it was asked for is in `asked`, path and range."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = {"/pets": CONTENT}
        self.asked: list[tuple[str, str | None]] = []
        self.cut: list[
            int
        ] = []  # how many bytes to send before the connection breaks, one a request
        self.ranges = True  # whether it can send a part
        self.says_length = True
        self.gate = threading.Event()  # the second half of a file waits for it
        self.gate.set()
        self.redirects: dict[str, str] = {}
        self.scheme = "http"

    def url(self, path: str = "/pets") -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}{path}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is part of these tests."""


class Answer(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers["Range"]
        self.server.asked.append((self.path, asked))
        if self.path in self.server.redirects:
            self.send_response(302)
            self.send_header("Location", self.server.redirects[self.path])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path not in self.server.files:
            self.send_error(404)
            return
        content, start = self.server.files[self.path], 0
        if asked and self.server.ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if self.server.says_length:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        rest = content[start:]
        if self.server.cut:
            self.wfile.write(rest[: self.server.cut.pop(0)])
            return
        self.wfile.write(rest[: len(rest) // 2])
        self.wfile.flush()
        self.server.gate.wait(60)
        self.wfile.write(rest[len(rest) // 2 :])

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.gate.set()
        running.shutdown()
        thread.join()


def get(server: Server, path: Path, **options: object) -> Path:
    return download(server.url(), path, loopback_http=True, **options)  # type: ignore[arg-type]


def left(folder: Path) -> list[str]:
    """What lies in the folder, locks aside."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


# -- A file's way to the disk --------------------------------------------------------------------


def test_a_whole_file_arrives(server: Server, tmp_path: Path) -> None:
    path = get(server, tmp_path / "new" / "pets.bin", sha256=SHA256.upper())
    assert path.read_bytes() == CONTENT
    assert left(path.parent) == ["pets.bin"]


def test_what_is_there_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    get(server, tmp_path / "pets.bin", sha256=SHA256)
    get(server, tmp_path / "pets.bin", sha256=SHA256)
    get(server, tmp_path / "pets.bin", md5=hashlib.md5(CONTENT).hexdigest())
    assert len(server.asked) == 1


def test_another_file_of_that_name_is_not_overwritten(server: Server, tmp_path: Path) -> None:
    (tmp_path / "pets.bin").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"pets\.bin is there, but its sha256 is .*delete it"):
        get(server, tmp_path / "pets.bin", sha256=SHA256)
    assert (tmp_path / "pets.bin").read_bytes() == b"mine"
    assert server.asked == []


@pytest.mark.parametrize("sums", [{"sha256": "0" * 64}, {"md5": "0" * 32}], ids=["sha256", "md5"])
def test_a_wrong_checksum_leaves_nothing(
    server: Server, tmp_path: Path, sums: dict[str, str]
) -> None:
    with pytest.raises(ValueError, match=r"nothing is kept of .*announced was 000"):
        get(server, tmp_path / "pets.bin", **sums)
    assert left(tmp_path) == []


def test_one_wrong_byte_is_noticed(server: Server, tmp_path: Path) -> None:
    server.files["/pets"] = CONTENT[:500_000] + b"!" + CONTENT[500_001:]
    with pytest.raises(ValueError, match="announced was"):
        get(server, tmp_path / "pets.bin", sha256=SHA256)
    assert left(tmp_path) == []


def test_a_broken_connection_is_no_file(server: Server, tmp_path: Path) -> None:
    server.cut = [300_000]
    with pytest.raises(ConnectionError, match=r"ended after 300,000 of 1,024,000 bytes"):
        get(server, tmp_path / "pets.bin", attempts=1)
    assert left(tmp_path) == ["pets.bin.part"]


def test_it_goes_on_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.cut = [300_000]
    path = get(server, tmp_path / "pets.bin", sha256=SHA256)
    assert path.read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == [None, "bytes=300000-"]


def test_it_starts_again_where_the_server_cannot_go_on(server: Server, tmp_path: Path) -> None:
    server.cut, server.ranges = [300_000], False
    assert get(server, tmp_path / "pets.bin", sha256=SHA256).read_bytes() == CONTENT


def test_without_a_checksum_an_old_part_is_not_trusted(server: Server, tmp_path: Path) -> None:
    (tmp_path / "pets.bin.part").write_bytes(b"of another file")
    assert get(server, tmp_path / "pets.bin").read_bytes() == CONTENT
    assert server.asked == [("/pets", None)]


@pytest.mark.parametrize(
    "part",
    [b"of another file", CONTENT + b"too long", CONTENT[:-1] + b"!"],
    ids=["other", "too long", "last byte wrong"],
)
def test_a_bad_part_is_thrown_away(server: Server, tmp_path: Path, part: bytes) -> None:
    (tmp_path / "pets.bin.part").write_bytes(part)
    assert get(server, tmp_path / "pets.bin", sha256=SHA256).read_bytes() == CONTENT
    assert server.asked[-1] == ("/pets", None)


def test_a_complete_part_is_enough(server: Server, tmp_path: Path) -> None:
    (tmp_path / "pets.bin.part").write_bytes(CONTENT)
    assert get(server, tmp_path / "pets.bin", sha256=SHA256).read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == [f"bytes={len(CONTENT)}-"]


def test_a_file_of_unknown_length_needs_a_checksum(server: Server, tmp_path: Path) -> None:
    server.says_length = False
    with pytest.raises(ValueError, match="does not say how long it is; give a checksum"):
        get(server, tmp_path / "pets.bin")
    assert left(tmp_path) == []
    assert get(server, tmp_path / "pets.bin", sha256=SHA256).read_bytes() == CONTENT


def test_not_found_is_said_at_once(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match=r"cannot download .*/nothing .*404.*attempt 1 of 3"):
        download(server.url("/nothing"), tmp_path / "x", loopback_http=True)
    assert len(server.asked) == 1
    assert left(tmp_path) == []


# -- Killed, and two at once ---------------------------------------------------------------------

SCRIPT = """
import sys
from petnb.downloads import download
download(sys.argv[1], sys.argv[2], sha256=sys.argv[3], loopback_http=True)
print("done", flush=True)
"""


def start(server: Server, path: Path) -> "subprocess.Popen[str]":
    """Another process that downloads."""
    command = [sys.executable, "-c", SCRIPT, server.url(), str(path), SHA256]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def wait_until(true: Callable[[], bool]) -> None:
    while not true():
        time.sleep(0.01)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_killed_in_the_middle_and_taken_up_again(server: Server, tmp_path: Path) -> None:
    server.gate.clear()
    part = tmp_path / "pets.bin.part"
    process = start(server, tmp_path / "pets.bin")
    wait_until(lambda: part.exists() and part.stat().st_size > 0)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "pets.bin").exists()
    arrived = part.stat().st_size
    assert 0 < arrived < len(CONTENT)
    server.gate.set()
    assert get(server, tmp_path / "pets.bin", sha256=SHA256).read_bytes() == CONTENT
    assert server.asked[1] == ("/pets", f"bytes={arrived}-")
    assert left(tmp_path) == ["pets.bin"]


def test_of_two_processes_one_fetches_and_one_waits(server: Server, tmp_path: Path) -> None:
    server.gate.clear()
    first = start(server, tmp_path / "pets.bin")
    wait_until(lambda: len(server.asked) == 1)
    second = start(server, tmp_path / "pets.bin")
    assert second.stdout is not None
    assert "another process is making pets.bin" in second.stdout.readline()
    server.gate.set()
    assert "done" in first.communicate()[0]
    assert "done" in second.communicate()[0]
    assert (first.returncode, second.returncode) == (0, 0)
    assert len(server.asked) == 1
    assert (tmp_path / "pets.bin").read_bytes() == CONTENT


# -- From whom -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "loopback_http"),
    [
        ("http://example.org/x", False),
        ("http://example.org/x", True),
        ("http://127.0.0.1.example.org/x", True),
        ("http://localhost@example.org/x", True),
        ("http://127.0.0.1/x", False),
        ("ftp://127.0.0.1/x", True),
        ("file:///etc/passwd", True),
        ("https:///x", False),
        ("pets.zip", True),
    ],
)
def test_only_https_or_this_computer(tmp_path: Path, url: str, loopback_http: bool) -> None:
    with pytest.raises(ValueError, match="is not https"):
        download(url, tmp_path / "x", loopback_http=loopback_http)
    assert list(tmp_path.iterdir()) == []


def test_https_and_loopback_pass() -> None:
    check_url("https://example.org/x")
    check_url("http://[::1]:80/x", loopback_http=True)


def test_a_redirection_to_http_is_refused(server: Server, tmp_path: Path) -> None:
    server.redirects["/moved"] = server.url("/pets")
    with pytest.raises(
        ValueError, match=r"/moved redirects to a weaker place: .*/pets is not https"
    ):
        download(server.url("/moved"), tmp_path / "x", SHA256, loopback_http=True)
    assert [path for path, _ in server.asked] == ["/moved"]
    assert left(tmp_path) == []


@pytest.fixture
def tls_server(
    server: Server, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Server:
    """The server with a certificate of its own, which this process trusts."""
    folder = tmp_path_factory.mktemp("certificate")
    certificate, key = str(folder / "certificate.pem"), str(folder / "key.pem")
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-keyout",
        key,
        "-out",
        certificate,
        *names,
    ]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"openssl cannot make a certificate here: {error}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.scheme = "https"
    monkeypatch.setenv("SSL_CERT_FILE", certificate)
    return server


def test_https_follows_https_and_no_downgrade(tls_server: Server, tmp_path: Path) -> None:
    tls_server.redirects["/moved"] = tls_server.url("/pets")
    assert download(tls_server.url("/moved"), tmp_path / "a", SHA256).read_bytes() == CONTENT
    tls_server.redirects["/down"] = tls_server.url("/pets").replace("https", "http")
    for loopback_http in (False, True):
        with pytest.raises(ValueError, match="redirects to a weaker place"):
            download(tls_server.url("/down"), tmp_path / "b", loopback_http=loopback_http)
    assert left(tmp_path) == ["a"]


def test_a_stranger_with_https_is_refused(
    tls_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
        download(tls_server.url(), tmp_path / "a", attempts=1)
    assert left(tmp_path) == []


# -- A file's way out of an archive --------------------------------------------------------------


def tar_of(path: Path, *entries: tarfile.TarInfo | tuple[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry)
            else:
                info = tarfile.TarInfo(entry[0])
                info.size = len(entry[1])
                archive.addfile(info, io.BytesIO(entry[1]))
    return path


def zip_of(path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_tar_archives_are_unpacked(tmp_path: Path, mode: str) -> None:
    archive = tar_of(tmp_path / "x", ("./pug/1.jpg", b"1"), ("naïve/ü\n.jpg", b"2"), mode=mode)
    folder = extract(archive, tmp_path / "deep" / "folder")
    assert (folder / "pug" / "1.jpg").read_bytes() == b"1"
    assert (folder / "naïve" / "ü\n.jpg").read_bytes() == b"2"
    assert left(folder.parent) == ["folder"]


def test_zip_archives_are_unpacked(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "x", ("pug/1.jpg", b"1"), ("naïve/-ü.jpg", b"2"))
    (tmp_path / "folder").mkdir()  # an empty one is no obstacle
    folder = extract(archive, tmp_path / "folder")
    assert (folder / "naïve" / "-ü.jpg").read_bytes() == b"2"


def test_only_one_folder_of_the_archive(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "x", ("images/1.jpg", b"1"), ("other/2.jpg", b"2"))
    assert left(extract(archive, tmp_path / "folder", inside="images")) == ["1.jpg"]
    with pytest.raises(ValueError, match="there is no folder 'photos' in it"):
        extract(archive, tmp_path / "b", inside="photos")


OUTSIDE = ["../evil", "a/../../evil", "/evil", "..\\evil", "C:\\evil", "C:evil", "\\\\host\\evil"]
GOOD = ("good.jpg", b"good")


@pytest.fixture
def refuses(tmp_path: Path) -> Callable[..., None]:
    """A check that an archive is refused, and that nothing of it is left anywhere."""

    def check(archive: Path, message: str, **options: Any) -> None:
        before = sorted(str(path) for path in tmp_path.rglob("*"))
        with pytest.raises(ValueError, match=rf"is not unpacked: {message}") as raised:
            extract(archive, tmp_path / "in" / "folder", **options)
        assert str(archive) in str(raised.value)
        (tmp_path / "in").rmdir()  # it is empty
        assert sorted(str(path) for path in tmp_path.rglob("*")) == before

    return check


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_outside(tmp_path: Path, refuses: Callable[..., None], name: str) -> None:
    refuses(tar_of(tmp_path / "x.tar.gz", GOOD, (name, b"evil")), "its member .* leads out of")
    refuses(zip_of(tmp_path / "x.zip", GOOD, (name, b"evil")), "its member .* leads out of")


@pytest.mark.parametrize("target", ["../..", "/etc", "good.jpg", "."])
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE], ids=["symbolic", "hard"])
def test_a_file_through_a_link(
    tmp_path: Path, refuses: Callable[..., None], kind: bytes, target: str
) -> None:
    entries = (GOOD, special("photos", kind, target), ("photos/evil", b"evil"))
    refuses(tar_of(tmp_path / "x.tar", *entries), "its member 'photos' is a link or a device")


def test_a_link_in_a_zip(tmp_path: Path, refuses: Callable[..., None]) -> None:
    entries = (GOOD, (zip_link("photos"), b"../.."), ("photos/evil", b"evil"))
    refuses(zip_of(tmp_path / "x.zip", *entries), "its member 'photos' is a link or a device")


@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_devices(tmp_path: Path, refuses: Callable[..., None], kind: bytes) -> None:
    refuses(tar_of(tmp_path / "x.tar", GOOD, special("d", kind)), "its member 'd' is a link or a d")


def test_bombs_of_size(tmp_path: Path, refuses: Callable[..., None]) -> None:
    zeros = ("zeros.bmp", bytes(3_000_000))
    for archive in (tar_of(tmp_path / "x.tar.gz", GOOD, zeros), zip_of(tmp_path / "x", zeros)):
        assert archive.stat().st_size < 10_000
        refuses(
            archive, "it holds over 2,999,999 bytes; max_bytes= allows more", max_bytes=2_999_999
        )
        refuses(archive, "it holds over 0 bytes", max_bytes=0)
        assert left(extract(archive, tmp_path / f"{archive.name} all")) != []


def test_a_zip_that_lies_about_its_size(tmp_path: Path, refuses: Callable[..., None]) -> None:
    archive = zip_of(tmp_path / "x.zip", ("zeros.bmp", bytes(3_000_000)))
    lying = archive.read_bytes().replace(
        (3_000_000).to_bytes(4, "little"), (5).to_bytes(4, "little")
    )
    archive.write_bytes(lying)
    refuses(archive, "it is damaged", max_bytes=100)


def test_bombs_of_number(tmp_path: Path, refuses: Callable[..., None]) -> None:
    many = [(f"{number}.jpg", b"") for number in range(11)]
    for archive in (tar_of(tmp_path / "x.tar", *many), zip_of(tmp_path / "x.zip", *many)):
        refuses(archive, "it has over 10 members; max_files= allows more", max_files=10)


def test_damaged_archives(tmp_path: Path, refuses: Callable[..., None]) -> None:
    noise = os.urandom(100_000)
    whole = tar_of(tmp_path / "whole.tar.gz", GOOD, ("noise.jpg", noise)).read_bytes()
    (tmp_path / "half.tar.gz").write_bytes(whole[:60_000])
    (tmp_path / "page.tar.gz").write_bytes(b"<!DOCTYPE html><title>404</title>")
    (tmp_path / "empty.tar.gz").write_bytes(b"")
    (tmp_path / "page.gz").write_bytes(gzip.compress(b"<html>"))
    flipped = bytearray(zip_of(tmp_path / "a.zip", ("noise.jpg", noise)).read_bytes())
    flipped[50_000] ^= 255
    (tmp_path / "flipped.zip").write_bytes(flipped)
    for name in ("half.tar.gz", "page.tar.gz", "empty.tar.gz", "page.gz", "flipped.zip"):
        refuses(tmp_path / name, "it is damaged, or neither tar nor zip")


def test_a_file_that_is_also_a_folder(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "x.tar", ("a", b"1"), ("a/b", b"2"))
    with pytest.raises(OSError, match=r"x\.tar is not unpacked"):
        extract(archive, tmp_path / "folder")
    assert left(tmp_path) == ["x.tar"]


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").touch()
    with pytest.raises(FileExistsError, match="is not empty"):
        extract(tar_of(tmp_path / "x.tar", GOOD), tmp_path / "folder")
    assert left(tmp_path / "folder") == ["mine"]


# -- Whole data sets -----------------------------------------------------------------------------


def jpeg(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), color).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PETNB_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_from_url(server: Server, home: Path, tmp_path: Path) -> None:
    entries = [
        (f"{breed}_{n}.jpg", jpeg(f"#0{n}0{len(breed)}ff"))  # No two alike
        for breed in ("pug", "Bengal")
        for n in range(5)
    ]
    content = zip_of(tmp_path / "x.zip", *entries).read_bytes()
    server.files["/a/pets.zip"] = content
    options: Any = {"loopback_http": True, "read": ImageData.from_name_re, "size": 32}
    sha256 = hashlib.sha256(content).hexdigest()
    data = ImageData.from_url(server.url("/a/pets.zip"), sha256, **options)
    assert data.vocab == ["Bengal", "pug"]
    assert data.root.is_relative_to(home)
    again = ImageData.from_url(server.url("/a/pets.zip"), sha256, **options)
    assert again.items.equals(data.items)
    assert len(server.asked) == 1
    with pytest.raises(ValueError, match="announced was 000"):  # another sum is another archive
        ImageData.from_url(server.url("/a/pets.zip"), "0" * 64, **options)


def test_from_url_without_a_checksum_tells_it(
    server: Server, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = [
        (f"{breed}/{n}.jpg", jpeg(f"#0{n}0{len(breed)}ff"))  # No two alike
        for breed in ("pug", "Bengal")
        for n in range(5)
    ]
    server.files["/pets.tar.gz"] = tar_of(tmp_path / "x", *entries).read_bytes()
    data = ImageData.from_url(server.url("/pets.tar.gz"), loopback_http=True)
    assert len(data.items) == 10
    assert hashlib.sha256(server.files["/pets.tar.gz"]).hexdigest() in capsys.readouterr().out


def oxford(server: Server, tmp_path: Path) -> dict[str, str]:
    """Put a small data set of the same layout on the server; the sums of its archives."""
    names = [f"{breed}_{n}" for breed in ("pug", "Bengal") for n in range(4)]
    images = [(f"images/{name}.jpg", jpeg("red")) for name in names]
    lists = {
        "trainval.txt": [n for n in names if n[-1] < "3"],
        "test.txt": [n for n in names if n[-1] == "3"],
    }
    notes = [
        (f"annotations/{k}", "\n".join(f"{n} 1 1 1" for n in v).encode()) for k, v in lists.items()
    ]
    sums = {}
    for kind, entries in (("images", images), ("annotations", notes)):
        content = tar_of(tmp_path / kind, *entries).read_bytes()
        server.files[f"/{kind}.tar.gz"] = content
        sums[kind] = hashlib.md5(content).hexdigest()
    return sums


def test_the_oxford_pets_from_a_server(server: Server, home: Path, tmp_path: Path) -> None:
    sums = oxford(server, tmp_path)
    folder = home / "oxford-iiit-pet"
    server.cut = [100]  # the first connection breaks
    download_pets(folder, server.url(""), sums, loopback_http=True)
    assert left(folder) == ["annotations", "images"]
    data = ImageData.oxford_pets(valid="official")  # it is there: no network
    assert data.class_counts().to_numpy().tolist() == [[3, 1], [3, 1]]


def test_a_wrong_oxford_archive(server: Server, home: Path, tmp_path: Path) -> None:
    oxford(server, tmp_path)
    folder = home / "oxford-iiit-pet"
    with pytest.raises(ConnectionError, match=r"announced was 5c4f3ee8.*Give root=.*drawn_pets"):
        download_pets(folder, server.url(""), PETS_ARCHIVES, loopback_http=True)
    assert left(folder) == []


def test_the_oxford_pets_are_asked_for_by_https(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(
        ConnectionError, match=r"cannot download .* https://www\.robots\.ox\.ac\.uk"
    ):
        ImageData.oxford_pets()
