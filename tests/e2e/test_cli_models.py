"""`soundstage models`: the table, and downloads from a stand-in hub on this machine."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from soundstage.checkpoints import download
from soundstage.checkpoints.releases import GEMMA, RELEASES
from soundstage.cli.main import run

FILE = "ltx-2-temporal-upscaler-x2-1.0.safetensors"
NAME = "ltx-2-temporal-upscaler-x2-1.0"
CONTENT = bytes(range(256)) * 140_000  # 36 MB; the hub client writes in pieces of 10
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.ThreadingHTTPServer):
    """The few addresses of a hub that a download touches."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {f"/Lightricks/LTX-2/resolve/main/{FILE}": CONTENT}
        self.refusal = None  # (status, error code)
        self.breaks_after = None  # bytes of the body, then the line is cut, and all later requests fail
        self.broken = False
        self.ranges = []
        self.sent = 0  # bytes of files
        self.pretended_size = None
        self.tokens = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, *, with_body):
        hub = self.server
        hub.tokens.append(self.headers.get("Authorization"))
        path = self.path.split("?")[0].replace(COMMIT, "main")
        if path.startswith("/api/models/"):
            return self.list_repository(path)
        if hub.refusal is not None:
            status, code = hub.refusal
            return self.reply(status, b"", {"X-Error-Code": code, "X-Error-Message": "refused"})
        if path not in hub.files:
            return self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
        content = hub.files[path]
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        if not with_body:
            size = hub.pretended_size or len(content)
            return self.reply(200, b"", headers | {"Content-Length": str(size)})
        start = 0
        if "Range" in self.headers:
            hub.ranges.append(self.headers["Range"])
            start = int(self.headers["Range"].removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if hub.broken:
            return self.reply(400, b"", {})
        return self.reply(206 if start else 200, content[start:], headers)

    def list_repository(self, path):
        repo = path.removeprefix("/api/models/").split("/revision")[0].split("/tree")[0]
        names = [f.split("/resolve/main/")[1] for f in self.server.files if f.startswith(f"/{repo}/")]
        if "/tree/" in path:
            sizes = {n: len(self.server.files[f"/{repo}/resolve/main/{n}"]) for n in names}
            entries = [{"type": "file", "path": n, "size": s, "oid": "0" * 40} for n, s in sizes.items()]
            return self.reply(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})
        info = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}
        return self.reply(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def reply(self, status, body, headers):
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        self.server.sent += len(body)
        limit = self.server.breaks_after
        if limit is not None and len(body) > limit:
            self.wfile.write(body[:limit])
            self.wfile.flush()
            self.server.broken = True
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(body)


@pytest.fixture
def hub():
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def fetch(hub, monkeypatch, tmp_path, capsys):
    """Run the command against the stand-in; return its exit status and what it wrote."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))

    def run_command(*arguments, name=NAME, endpoint=hub.url):
        to = str(tmp_path / "models")
        status = run(["models", "download", name, "--to", to, "--endpoint", endpoint, *arguments])
        written = capsys.readouterr()
        return Done(status, written.out, written.err)

    return run_command


class Done(NamedTuple):
    status: int
    out: str
    err: str


def one_line(done):
    """Check that a refusal is one line and status 2, and return it; retries may be reported before it."""
    assert done.status == 2, done.err
    errors = [line for line in done.err.splitlines() if line.startswith("soundstage: error:")]
    assert len(errors) == 1
    assert done.err.strip().endswith(errors[0])
    assert done.out == ""
    return errors[0]


def test_a_release_is_downloaded_to_where_it_was_asked_for(fetch, tmp_path):
    done = fetch()
    assert done.status == 0, done.err
    assert done.out == f"{tmp_path / 'models'}\n"
    assert (tmp_path / "models" / FILE).read_bytes() == CONTENT


def test_an_interrupted_download_goes_on_where_it_stopped(hub, tmp_path):
    """In a process of its own, with nothing but the environment to point at the stand-in."""
    command = [
        sys.executable,
        "-m",
        "soundstage",
        "models",
        "download",
        NAME,
        "--to",
        str(tmp_path),
        "--json",
    ]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "NO_PROXY": "127.0.0.1",
    }

    def start():
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        return Done(done.returncode, done.stdout, done.stderr)

    hub.breaks_after = 25_000_000
    message = one_line(start())
    assert "could not be fetched" in message
    assert "it goes on where it stopped" in message
    assert not (tmp_path / FILE).exists()
    hub.breaks_after, hub.broken = None, False
    hub.ranges.clear()
    done = start()
    assert done.status == 0, done.err
    assert (tmp_path / FILE).read_bytes() == CONTENT
    assert json.loads(done.out)["files"] == [str(tmp_path / FILE)]
    (asked,) = hub.ranges
    assert int(asked.removeprefix("bytes=").split("-")[0]) > 1_000_000


def test_a_gated_repository_is_explained(hub, fetch, tmp_path):
    hub.refusal = (403, "GatedRepo")
    message = one_line(fetch())
    assert "Lightricks/LTX-2 is gated (LTX-2 Community License)" in message
    assert "accept its licence" in message
    assert "hf auth login" in message
    assert f"fetch {FILE} by hand from huggingface.co/Lightricks/LTX-2" in message
    assert f"put it into {tmp_path / 'models'}" in message


def test_a_repository_that_wants_a_login_is_explained(hub, fetch):
    hub.refusal = (401, "RepoNotFound")
    message = one_line(fetch())
    assert "does not exist or is not visible without logging in" in message
    assert "--repo" in message


def test_a_file_that_is_not_in_the_repository_is_explained(hub, fetch):
    hub.files.clear()
    assert f"Lightricks/LTX-2 has no {FILE}" in one_line(fetch())


def test_a_hub_that_does_not_answer_is_explained(fetch, monkeypatch):
    import huggingface_hub

    def refuse(*_, **__):
        raise ConnectionError("connection refused")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    assert "could not be fetched (ConnectionError: connection refused)" in one_line(fetch())


def test_what_is_there_already_is_not_fetched_again(hub, fetch, tmp_path):
    assert fetch().status == 0
    hub.sent = 0
    assert fetch().status == 0
    assert hub.sent == 0


def test_a_file_that_changed_meanwhile_begins_anew(hub, fetch, tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / f"{FILE}.0123456789abcdef.part").write_bytes(b"of an older version")
    assert fetch().status == 0
    assert (folder / FILE).read_bytes() == CONTENT


def test_another_repository_can_be_named(hub, fetch, tmp_path):
    hub.files = {f"/someone/mirror/resolve/main/{FILE}": CONTENT}
    assert fetch("--repo", "someone/mirror").status == 0
    assert (tmp_path / "models" / FILE).read_bytes() == CONTENT


def test_the_users_token_is_sent(hub, fetch, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert fetch().status == 0
    assert "Bearer hf_secret" in hub.tokens


def test_a_whole_repository_is_fetched(hub, fetch, tmp_path, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**12))
    hub.files = {
        f"/{RELEASES[GEMMA].repo}/resolve/main/{name}": content
        for name, content in (("config.json", b"{}"), ("tokenizer.json", b"{}"), ("model.gguf", b"no"))
    }
    done = fetch(name=GEMMA)
    assert done.status == 0, done.err
    assert (tmp_path / "models" / "config.json").read_bytes() == b"{}"
    assert not (tmp_path / "models" / "model.gguf").exists()


def test_a_full_disk_is_told_before_anything_is_fetched(hub, fetch, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    hub.pretended_size = 46_149_344_974
    assert "has 1.0 GB of free space, 46.1 GB are needed; give another place" in one_line(fetch())
    assert hub.sent == 0


def test_a_folder_that_cannot_be_made_is_told(fetch, tmp_path):
    (tmp_path / "models").write_text("in the way")
    assert "cannot be written" in one_line(fetch())


def test_the_table_lists_every_release(capsys):
    assert run(["models"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in RELEASES)
    assert "embedded" in shown
    assert "SOUNDSTAGE_MODELS" in shown
    assert "licences of their own" in shown


def test_one_release_is_shown_in_detail(capsys):
    assert run(["models", "list", "ltx-2.5-22b-dev"]) == 0
    shown = capsys.readouterr().out
    assert "diffusion_models/ltx-2.5-22b-dev-transformer-bf16.safetensors" in shown
    assert "licence: LTX-2.x Community License" in shown
    assert "(gated)" in shown


def test_the_table_for_machines(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("SOUNDSTAGE_MODELS", str(tmp_path))
    (tmp_path / FILE).write_bytes(b"x")
    assert run(["models", "--json"]) == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert listed.keys() == RELEASES.keys()
    assert listed[NAME]["found"] == [str(tmp_path / FILE)]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["download"], "say what to download"),
        (["download", "ltx-2.3-22b-deb"], "did you mean 'ltx-2.3-22b-dev'"),
        (["list", "nothing"], "unknown release 'nothing'"),
        (["download", "embedded"], "is inside the package: there is nothing to download"),
        (["list", "embedded"], "is inside the package"),
    ],
)
def test_bad_requests_are_one_line(arguments, reason, capsys):
    status = run(["models", *arguments])
    written = capsys.readouterr()
    assert reason in one_line(Done(status, written.out, written.err))
