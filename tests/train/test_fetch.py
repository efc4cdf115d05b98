"""Fetching a data set: from a server of our own, and once from Debian."""

import gzip
import hashlib
import shutil
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from train import fetch, help_pages
from train.data.images.arrays import fashion_mnist
from train.data.text import catalog

NAME = "fashion-mnist"
FILES = {"train": b"images to train on", "test": b"images to test with" * 10_000}


class Handler(SimpleHTTPRequestHandler):
    def do_GET(self):
        if self.path.startswith("/short/"):
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"not a hundred")
        else:
            super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """(address, folder) of a web server; what it holds is what DOWNLOADS expects."""
    folder = tmp_path / "server"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        address = f"http://127.0.0.1:{running.server_port}"
        expect(monkeypatch, tmp_path, fetch.Address(address))
        yield address, folder
        running.shutdown()
        thread.join()


def expect(monkeypatch, tmp_path, *sources):
    """Fakes the table: FILES, from these sources."""
    sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    monkeypatch.setitem(fetch.DOWNLOADS, NAME, fetch.Download(tmp_path / "data" / NAME, sources, sha256))


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["fetch", NAME, *map(str, arguments)])
    fetch.main()


class Interrupted:
    def get(self, names, folder):
        (folder / "train.gz").write_bytes(b"half of")
        raise KeyboardInterrupt


def test_fetches_once(server, tmp_path):
    _, served = server
    folder = tmp_path / "data" / NAME
    assert fetch.fetch(NAME)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in served.iterdir()
    }
    assert [path.name for path in folder.parent.iterdir()] == [NAME]
    before = {path: path.stat() for path in folder.iterdir()}
    shutil.rmtree(served)
    assert not fetch.fetch(NAME)
    assert {path: path.stat() for path in folder.iterdir()} == before


def test_the_command_says_what_it_did(server, tmp_path, monkeypatch, capsys):
    address, _ = server
    expect(monkeypatch, tmp_path)
    folder = tmp_path / "elsewhere"
    command(monkeypatch, "--folder", folder, "--address", f"{address}/")
    assert f"fetched into {folder}, all files are right" in capsys.readouterr().out
    command(monkeypatch, "--folder", folder)
    assert f"already in {folder}, all files are right" in capsys.readouterr().out


def test_what_is_missing_is_added(server, tmp_path):
    folder = tmp_path / "data" / NAME
    folder.mkdir(parents=True)
    (folder / "train").write_bytes(FILES["train"])  # unpacked counts too
    (folder / "notes").write_text("mine")
    assert fetch.fetch(NAME)
    assert {path.name for path in folder.iterdir()} == {"train", "test.gz", "notes"}
    assert (folder / "notes").read_text() == "mine"


def test_existing_wrong_files_are_refused(server, tmp_path, monkeypatch):
    folder = tmp_path / "data" / NAME
    folder.mkdir(parents=True)
    (folder / "train.gz").write_bytes(gzip.compress(b"something else"))
    (folder / "test.gz").write_bytes(gzip.compress(FILES["test"])[:-20])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(SystemExit) as caught:
        command(monkeypatch)
    message = str(caught.value)
    assert "not overwritten" in message
    assert "train.gz: expected SHA-256" in message
    assert "test.gz: expected a readable file, whole" in message
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "test.gz").write_bytes(gzip.compress(FILES["test"]))
    with pytest.raises(fetch.FetchError) as again:
        fetch.fetch(NAME)
    assert "test.gz" not in str(again.value)


def test_wrong_contents_leave_nothing_behind(server, tmp_path):
    _, served = server
    (served / "test.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(fetch.FetchError, match=r"test\.gz: expected SHA-256 \w{64} unpacked, got \w{64}"):
        fetch.fetch(NAME, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["server"]


def test_an_interrupted_fetch_leaves_nothing_behind(tmp_path, monkeypatch):
    expect(monkeypatch, tmp_path, Interrupted())
    with pytest.raises(KeyboardInterrupt):
        fetch.fetch(NAME, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_all_sources_and_their_reasons_are_named(server, tmp_path, monkeypatch):
    address, _ = server
    gone = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    gone.server_close()
    nobody = f"http://127.0.0.1:{gone.server_port}"
    sources = [f"{address}/no-such-folder", nobody, f"{address}/short", "nonsense"]
    expect(monkeypatch, tmp_path, fetch.DebianPackage("any", "any"), *map(fetch.Address, sources))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as caught:
        command(monkeypatch, "--folder", tmp_path / "new")
    lines = str(caught.value).splitlines()
    assert lines[0] == "train.fetch: fashion-mnist could not be fetched; tried:"
    assert lines[1] == "  Debian's package any: apt-get is not installed"
    assert lines[2] == f"  {sources[0]}: train.gz: the server says 404 File not found"
    assert lines[3].startswith(f"  {nobody}: train.gz: ")
    assert "refused" in lines[3]
    assert lines[4] == f"  {sources[2]}: train.gz: the server broke off after 13 of 100 bytes"
    assert lines[5].startswith("  nonsense: train.gz: unknown url type")
    assert "--address" in lines[6]
    assert [path.name for path in tmp_path.iterdir()] == ["server"]


def test_the_next_source_is_tried(server, tmp_path, monkeypatch):
    address, _ = server
    expect(monkeypatch, tmp_path, fetch.Address(f"{address}/no-such-folder"), fetch.Address(address))
    assert fetch.fetch(NAME, tmp_path / "new")


def test_a_slow_server_is_given_up(server, tmp_path, monkeypatch):
    address, _ = server
    expect(monkeypatch, tmp_path, fetch.Address(address, time_limit=0))
    with pytest.raises(fetch.FetchError, match=r"train\.gz took more than 0 seconds"):
        fetch.fetch(NAME, tmp_path / "new")


def test_a_place_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(fetch.FetchError, match="is not a folder: choose another one"):
        fetch.fetch(NAME, tmp_path / "file")
    with pytest.raises(fetch.FetchError, match=r"cannot be written \(.*: choose another folder"):
        fetch.fetch(NAME, tmp_path / "file" / "inside")


def test_debian_has_fashion_mnist(tmp_path, monkeypatch):
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    download = fetch.DOWNLOADS[NAME]
    package = next(source for source in download.sources if isinstance(source, fetch.DebianPackage))
    monkeypatch.chdir(tmp_path)
    (folder := tmp_path / "here").mkdir()
    try:
        fetch.DebianPackage(package.package, package.folder, time_limit=60).get(download.sha256, Path("here"))
    except fetch.FetchError as error:
        if str(error).startswith("apt-get"):  # no lists, no such package, or no network
            pytest.skip(str(error))
        raise
    assert {path.name for path in folder.iterdir()} == {f"{name}.gz" for name in download.sha256}
    assert not fetch.fetch(NAME, folder)  # as its hashes say
    data = fashion_mnist(folder)
    assert (len(data.train), len(data.test)) == (60_000, 10_000)
    train = data.train.load(np.arange(60_000), None)
    assert train["image"].shape == (60_000, 28, 28, 1)
    assert np.bincount(train["label"]).tolist() == [6_000] * 10
    assert np.bincount(data.test.load(np.arange(10_000), None)["label"]).tolist() == [1_000] * 10
    np.testing.assert_allclose(data.mean / 255, [0.2860], atol=1e-4)
    np.testing.assert_allclose(data.std / 255, [0.3530], atol=1e-4)


def test_the_help_pages_become_files(tmp_path, monkeypatch):
    """From folders as the packages unpack to; that Debian has packages is tested above."""
    roots = {}
    for package, folder, texts in zip(
        help_pages.PACKAGES, help_pages.FOLDERS, (["one word", "two words"], ["ein Wort", "zwei Wörter"]), strict=True
    ):
        roots[package] = tmp_path / package
        (roots[package] / folder).mkdir(parents=True)
        for number, text in enumerate(texts * 15):
            page = roots[package] / folder / f"{number}.html"
            page.write_text(f'<p id="a">{text} {"x" * number}a</p>', "utf-8")
    monkeypatch.setattr(help_pages, "unpack", lambda package, work: roots[package])
    assert fetch.fetch("libreoffice-help", tmp_path / "data")
    corpus = catalog.load(f"libreoffice-help:{tmp_path / 'data'}")
    assert len(corpus.train.source) > 20
    assert all(len(set(text.split()) & {"ein", "zwei"}) == 1 for text in corpus.train.target)
    assert not fetch.fetch("libreoffice-help", tmp_path / "data")
