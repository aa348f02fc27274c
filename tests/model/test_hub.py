"""The Hub, played by a server on this machine: what is fetched, cached, refused, and said."""

import functools
import hashlib
import http.server
import socket
import sys
import threading

import pytest
import torch

from mist_loss.model import hub, weights
from mist_loss.model.network import MIST, MISTConfig

huggingface_hub = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ADDRESS = f"someone/small@{COMMIT}"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return MIST(MISTConfig(width=16, set_width=8, row_pairs=2, pair_width=4))


@pytest.fixture
def folder(model, tmp_path):
    return model.save_pretrained(tmp_path / "remote")


@pytest.fixture
def served(folder, tmp_path, monkeypatch):
    """Requests that a server got, which has ``folder`` as someone/small at COMMIT; nothing else is asked."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append((self.command, self.path))
            prefix = f"/someone/small/resolve/{COMMIT}/"
            file = folder / self.path.removeprefix(prefix)
            found = self.path.startswith(prefix) and file.is_file()
            content = file.read_bytes() if found else b"{}"
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(content)))
            if found:
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMIT)
            else:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # what HF_ENDPOINT and HF_HOME do, which are read once on import
    place = {"endpoint": f"http://127.0.0.1:{server.server_port}", "cache_dir": tmp_path / "cache"}
    download = functools.partial(huggingface_hub.hf_hub_download, **place)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def local_only(host, *args, **kwargs):
        assert host in ("127.0.0.1", b"127.0.0.1"), f"a test asked for {host}"
        return resolve(host, *args, **kwargs)

    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", local_only)
    yield requests
    server.shutdown()
    server.server_close()


def test_fetched_once_and_then_without_network(served, model):
    loaded = MIST.from_pretrained(ADDRESS)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict())
    assert any(weights.WEIGHTS in path for _, path in served)
    served.clear()
    MIST.from_pretrained(ADDRESS)
    assert served == []


def test_a_tampered_cache_is_refused(served):
    path = weights.find(ADDRESS)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="sha256"):
        MIST.from_pretrained(ADDRESS)


def test_a_tampered_remote_is_refused(served, folder):
    (folder / weights.CHECKSUM).write_text("0" * 64)
    with pytest.raises(ValueError, match="expected 0000"):
        MIST.from_pretrained(ADDRESS)


def test_offline_with_nothing_cached(served, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="is not in the cache, and the Hugging Face Hub cannot be reached"):
        MIST.from_pretrained(ADDRESS)
    assert served == []


def test_offline_from_the_cache(served, model, monkeypatch):
    MIST.from_pretrained(ADDRESS)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    torch.testing.assert_close(MIST.from_pretrained(ADDRESS).state_dict(), model.state_dict())


def test_unknown_repositories(served):
    with pytest.raises(FileNotFoundError, match=r"no weights at someone/else@.*check the name and the commit"):
        MIST.from_pretrained(f"someone/else@{COMMIT}")


@pytest.mark.parametrize(
    "name", ["someone/small", "someone/small@main", "someone/small@v1", f"someone/small@{COMMIT[:8]}"]
)
def test_what_is_not_pinned_is_refused(served, name):
    with pytest.raises(ValueError, match="40 hexadecimal digits of a commit"):
        MIST.from_pretrained(name)
    assert served == []


def test_pushed_folders_can_be_read_back(model, monkeypatch, tmp_path):
    remote = tmp_path / "remote"

    class Interface:
        def create_repo(self, repository, private, exist_ok):
            assert (repository, private, exist_ok) == ("someone/small", True, True)

        def upload_folder(self, repo_id, folder_path, commit_message):
            assert repo_id == "someone/small"
            assert commit_message
            folder_path.rename(remote)
            folder_path.mkdir()
            return type("Commit", (), {"oid": COMMIT})

    monkeypatch.setattr(huggingface_hub, "HfApi", Interface)
    assert model.push_to_hub("someone/small") == ADDRESS
    torch.testing.assert_close(MIST.from_pretrained(remote).state_dict(), model.state_dict())
    with pytest.raises(ValueError, match="expected a repository OWNER/NAME"):
        model.push_to_hub("small")


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'mist-loss\[hub\]'"):
        MIST.from_pretrained(ADDRESS)
    assert not hub.is_address("mist-base")
    assert not hub.is_address("../folder/file")
