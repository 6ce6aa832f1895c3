"""Folders pushed to a hub: a stand-in on this machine, which keeps what it is sent."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

import prunekit as pk
from prunekit_plugins.cli.entry import main
from prunekit_plugins.folders.hub import push
from tests.docs.snippets import ROOT
from tests.models import small_llama

transformers = pytest.importorskip("transformers")
hub = pytest.importorskip("huggingface_hub")

OLD_CARD = "---\nlicense: mit\nmodel-index:\n- name: big\n  results: []\nlanguage:\n- en\n---\n\n# Big\n"
IDS = {"input_ids": torch.tensor([[5, 9, 4, 33, 21, 8]])}


@attrs.define
class Standin:
    """A hub that holds repositories.

    Attributes:
        address: Where it is.
        tokens: The token that each repository was made with.
        files: What was committed, by repository and name.
        messages: The summaries of the commits.
        refused: The status that everything is answered with; 0 for none.
    """

    address: str = ""
    tokens: dict[str, str] = attrs.field(factory=dict)
    files: dict[str, dict[str, bytes]] = attrs.field(factory=dict)
    messages: list[str] = attrs.field(factory=list)
    refused: int = 0

    def answer(self, path: str, body: bytes, token: str) -> tuple[int, dict[str, Any]]:
        if self.refused:
            return self.refused, {"error": "not for you"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.tokens[name] = token
            self.files.setdefault(name, {})
            return 200, {"url": f"{self.address}/{name}", "name": name, "id": name}
        repository = "/".join(path.removeprefix("/api/models/").split("/")[:2])
        if path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            return 200, {"files": [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in files]}
        if path.endswith("/commit/main"):
            for line in body.splitlines():
                self._take(repository, json.loads(line))
            commit = f"{self.address}/{repository}/commit/1"
            return 200, {"commitUrl": commit, "commitOid": "1", "hookOutput": ""}
        if repository in self.files:
            return 200, {"id": repository, "sha": "0", "siblings": [], "branches": [], "tags": []}
        return 404, {"error": f"nothing at {path}"}

    def _take(self, repository: str, line: dict[str, Any]) -> None:
        if line["key"] == "header":
            self.messages.append(line["value"]["summary"])
        elif line["key"] == "file":
            self.files[repository][line["value"]["path"]] = base64.b64decode(line["value"]["content"])


@pytest.fixture
def standin() -> Iterator[Standin]:
    hub = Standin()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length")
            self._answer(self.rfile.read(int(length)) if length else self._chunks())

        def _chunks(self) -> bytes:
            found = b""
            while size := int(self.rfile.readline(), 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            return found

        def _answer(self, body: bytes) -> None:
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            status, data = hub.answer(self.path.split("?")[0], body, token)
            text = json.dumps(data).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args: object) -> None:
            """Nothing is printed."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def big(tmp_path: Path) -> Path:
    small_llama(hidden_size=32, intermediate_size=64).save_pretrained(str(tmp_path / "big"))
    return tmp_path / "big"


@pytest.fixture
def here(standin: Standin, monkeypatch: pytest.MonkeyPatch) -> Standin:
    """The stand-in, as what this process takes for the hub."""
    monkeypatch.setattr(hub.constants, "ENDPOINT", standin.address)
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    return standin


def pruned(big: Path) -> tuple[Any, pk.PruneResult]:
    model = pk.load_folder(big)
    return model, pk.prune(model, IDS, ratio=0.5, serve="transformers")


def test_a_folder_is_pushed_with_its_card(here: Standin, big: Path, tmp_path: Path) -> None:
    model, result = pruned(big)
    small = tmp_path / "small"
    measured = {"perplexity": (24.0, 30.0)}
    (big / "README.md").write_text(OLD_CARD)
    saved = pk.save_folder(
        model, small, plan=result.plan, source=big, protocol=result.protocol, measured=measured, push_to_hub="me/small"
    )
    assert saved.address == f"{here.address}/me/small"
    assert str(saved).endswith(f"pushed to {here.address}/me/small")
    assert here.tokens == {"me/small": "hf_mine"}
    assert here.messages == ["Pruned with prunekit"]
    sent = here.files["me/small"]
    assert sent == {file.name: file.read_bytes() for file in small.iterdir()}
    assert {"config.json", "model.safetensors", "prunekit_plan.json", "README.md"} <= sent.keys()
    card = sent["README.md"].decode()
    assert "| perplexity | 24 | 30 | +25.0% |" in card
    assert card.startswith(
        "---\nlibrary_name: transformers\ntags:\n- prunekit\nlicense: mit\nlanguage:\n- en\n---\n\n# Llama"
    )


def test_a_hub_that_refuses_leaves_the_folder(here: Standin, big: Path, tmp_path: Path) -> None:
    here.refused = 403
    model, result = pruned(big)
    with pytest.raises(pk.StorageError, match="was written, and the hub refuses it") as refusal:
        pk.save_folder(model, tmp_path / "small", plan=result.plan, push_to_hub="me/small")
    assert "403" in refusal.value.why
    assert transformers.LlamaForCausalLM.from_pretrained(str(tmp_path / "small")).config.hidden_size == 16


def test_a_hub_that_can_not_be_reached_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(pk.StorageError, match="the hub refuses it"):
        push(tmp_path, "me/small")


def test_what_can_not_be_pushed_is_told_before_any_work(
    here: Standin, big: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", str(tmp_path / "small"))
    assert main(["prune", f"hf:{big}", *out, "--push-to-hub", "a/b/c"]) == 2
    assert "The name is none of a repository." in capsys.readouterr().err
    assert main(["prune", f"hf:{big}", "--out", str(tmp_path / "x.safetensors"), "--push-to-hub", "me/small"]) == 2
    assert "are for folders" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["prune", f"hf:{big}", *out, "--push-to-hub", "me/small"]) == 2
    assert "huggingface_hub can't be imported." in capsys.readouterr().err
    assert here.tokens == {}
    assert not (tmp_path / "small").exists()


@pytest.mark.slow
def test_the_commands_push_to_the_hub_that_the_environment_names(standin: Standin, big: Path, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": standin.address,
        "HF_TOKEN": "hf_mine",
        "HF_HOME": str(tmp_path / "home"),
    }
    program = "import sys; from prunekit_plugins.cli.entry import main; sys.exit(main(sys.argv[1:]))"
    torch.save(torch.randint(3, 34, (8, 6)), tmp_path / "ids.pt")
    prune = ["prune", f"hf:{big}", "--ratio", "0.5", "--out", "small", "--push-to-hub", "me/small"]
    distill = ["distill", "small", f"hf:{big}", "--data", "ids.pt", "--out", "healed", "--push-to-hub", "us/healed"]
    for command in (prune, distill):
        done = subprocess.run(
            [sys.executable, "-c", program, *command],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f"pushed to {standin.address}/{command[-1]}" in done.stdout
    assert set(standin.files) == {"me/small", "us/healed"}
    for name, line in (
        ("me/small", "nothing was trained"),
        ("us/healed", "was trained for 1 step towards the outputs"),
    ):
        card = standin.files[name]["README.md"].decode()
        assert line in card
        assert "Called with `ratio=0.5`" in card
    assert "| logits | " in standin.files["us/healed"]["README.md"].decode()
