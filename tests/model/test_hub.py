"""Finding models, and pulling them from a hub on loopback that fails in every way it can."""

import json
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from safetensors.numpy import save

from fourbee.model import download
from fourbee.model.checkpoint_files import load_weights
from fourbee.model.hub import pull, resolve_model, store

from .conftest import CONFIG, ArrayOperations, message, random_tensors
from .hub_server import FakeHub, running

WEIGHTS = "model.safetensors"
AGAIN = "run the same command again to go on"


def model_files() -> dict[str, bytes]:
    return {
        ".gitattributes": b"*.safetensors filter=lfs\n",
        "README.md": b"# A model\n",
        "config.json": json.dumps(CONFIG.to_json()).encode(),
        "generation_config.json": b'{"top_k": 20}\n',
        "merges.txt": "é e\n".encode(),
        WEIGHTS: save(random_tensors(CONFIG)),
        "modeling.py": b"import os\n",
        "pytorch_model.bin": b"pickled",
        "tokenizer.json": b"{}\n",
        "../outside.safetensors": b"no",
        "onnx/model.safetensors": b"no",
    }


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FOURBEE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(download, "_PAUSE_SECONDS", 0.0)
    return tmp_path / "home"


@pytest.fixture
def hub(monkeypatch):
    with running(FakeHub(model_files())) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def assert_pulled(hub: FakeHub, folder: Path) -> None:
    wanted = {
        "config.json",
        "generation_config.json",
        "merges.txt",
        "model.safetensors",
        "tokenizer.json",
    }
    assert {path.name for path in folder.iterdir()} == wanted | {"download.json"}
    for name in wanted:
        assert (folder / name).read_bytes() == hub.files[name]
    assert resolve_model("owner/name") == folder
    load_weights(folder, ArrayOperations())


# Finding.


def test_a_folder_is_taken_as_it_is(tmp_path, monkeypatch) -> None:
    assert resolve_model(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    assert resolve_model("~/mine") == tmp_path / "mine"


def test_a_gguf_file_is_taken_as_it_is(tmp_path) -> None:
    file = tmp_path / "model.GGUF"
    assert message(resolve_model, str(file)) == f"model {str(file)!r}: no such file"
    file.touch()
    assert resolve_model(str(file)) == file


def test_what_is_no_model_is_named_with_the_remedy(tmp_path) -> None:
    assert message(resolve_model, "Qwen/Qwen3-0.6B") == (
        "model 'Qwen/Qwen3-0.6B': no such folder, and not downloaded: "
        "run `fourbee pull Qwen/Qwen3-0.6B`"
    )
    for name in ("./nothing", "nothing", "../a/b", "a/b/c", ".partial/name"):
        assert message(resolve_model, name) == (
            f"model {name!r}: no such folder; expected a folder with config.json or a hub id "
            "such as Qwen/Qwen3-0.6B"
        )
    file = tmp_path / "model.safetensors"
    file.touch()
    assert message(resolve_model, str(file)) == (
        f"model {str(file)!r}: a file; expected a folder with config.json or a .gguf file"
    )


def test_the_embedded_model_is_found_in_the_package(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("fourbee.model.hub.MODELS", tmp_path / "models")
    folder = tmp_path / "models" / "fourbee-mini"
    absent = f"model 'fourbee-mini': not in this installation (no {folder}); name another model"
    assert message(resolve_model, None) == absent
    assert message(resolve_model, "fourbee-mini") == absent
    folder.mkdir(parents=True)
    assert resolve_model(None) == resolve_model("fourbee-mini") == folder


def test_the_store_is_in_the_home_folder_unless_told(tmp_path, monkeypatch) -> None:
    assert store() == tmp_path / "home" / "models"
    monkeypatch.delenv("FOURBEE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store() == tmp_path / ".cache" / "fourbee" / "models"


# Pulling.


def test_a_pull_takes_the_model_and_nothing_else(hub) -> None:
    reports = []
    folder = pull("owner/name", progress=lambda *report: reports.append(report))
    assert folder == store() / "owner" / "name"
    assert_pulled(hub, folder)
    assert hub.downloads()[0][0] == "config.json"
    total = sum(len(hub.files[name]) for name, _ in hub.downloads())
    done = [count for _, count, _ in reports]
    assert {all_ for _, _, all_ in reports} == {total}
    assert done == sorted(done) and done[-1] == total
    assert reports[-1][0] == WEIGHTS


def test_a_second_pull_downloads_nothing(hub) -> None:
    pull("owner/name")
    hub.asked.clear()
    assert_pulled(hub, pull("owner/name"))
    assert hub.downloads() == []


def test_a_revision_may_be_a_branch_with_a_slash_or_a_commit(hub) -> None:
    assert_pulled(hub, pull("owner/name", "branch/1"))
    assert_pulled(hub, pull("owner/name", hub.commit))
    assert message(pull, "owner/name", "v9") == ("model 'owner/name': no revision 'v9' on the hub")


def test_a_newer_commit_replaces_the_model_and_fetches_what_changed(hub) -> None:
    pull("owner/name")
    hub.commit = "b" * 40
    hub.files["tokenizer.json"] = b'{"version": "2"}\n'
    del hub.files["generation_config.json"]
    hub.asked.clear()
    folder = pull("owner/name")
    assert hub.downloads() == [("tokenizer.json", "bytes=0-")]
    assert (folder / "tokenizer.json").read_bytes() == hub.files["tokenizer.json"]
    assert not (folder / "generation_config.json").exists()
    assert json.loads((folder / "download.json").read_text())["commit"] == hub.commit
    assert not list((store() / ".partial" / "owner" / "name").iterdir())


def test_a_broken_connection_is_taken_up_where_it_broke(hub) -> None:
    hub.breaks = {WEIGHTS: [1000, 1000, 1]}
    assert_pulled(hub, pull("owner/name"))
    asked = [wanted for name, wanted in hub.downloads() if name == WEIGHTS]
    assert asked == ["bytes=0-", "bytes=1000-", "bytes=2000-", "bytes=2001-"]


def test_an_interrupted_pull_goes_on_the_next_time(hub) -> None:
    hub.breaks = {WEIGHTS: [5000, 0, 0, 0, 0, 0]}
    assert message(pull, "owner/name").startswith(
        "model 'owner/name': no download from 127.0.0.1: "
    )
    assert message(resolve_model, "owner/name").endswith("run `fourbee pull owner/name`")
    hub.asked.clear()
    reports = []
    assert_pulled(hub, pull("owner/name", progress=lambda *report: reports.append(report)))
    assert hub.downloads() == [(WEIGHTS, "bytes=5000-")]
    assert reports[0][1] > 5000


def test_what_waits_of_another_commit_is_not_mixed_in(hub) -> None:
    hub.breaks = {WEIGHTS: [5000, 0, 0, 0, 0, 0]}
    message(pull, "owner/name")
    hub.commit = "b" * 40
    tensors = {name: array * 2 for name, array in random_tensors(CONFIG).items()}
    hub.files[WEIGHTS] = save(tensors)
    assert_pulled(hub, pull("owner/name"))


def test_a_server_without_ranges_sends_the_file_again(hub) -> None:
    hub.ranges = False
    hub.breaks = {WEIGHTS: [1000]}
    assert_pulled(hub, pull("owner/name"))


def test_a_damaged_file_is_deleted_and_said_so(hub) -> None:
    hub.damaged = {WEIGHTS, "generation_config.json"}
    text = message(pull, "owner/name")
    assert text.startswith("model 'owner/name': generation_config.json arrived damaged and was ")
    hub.damaged = {WEIGHTS}
    content = hub.files[WEIGHTS]
    sha256 = next(s for s in hub.listing()["siblings"] if s["rfilename"] == WEIGHTS)["lfs"][
        "sha256"
    ]
    damaged = download.hashlib.sha256(content[:-1] + bytes([content[-1] ^ 1])).hexdigest()
    assert message(pull, "owner/name") == (
        f"model 'owner/name': {WEIGHTS} arrived damaged and was deleted "
        f"(digest {damaged[:12]}, expected {sha256[:12]}); run the same command again"
    )
    waiting = store() / ".partial" / "owner" / "name" / hub.commit
    assert not (waiting / WEIGHTS).exists() and not (waiting / f"{WEIGHTS}.part").exists()
    hub.damaged = set()
    assert_pulled(hub, pull("owner/name"))


def test_a_busy_hub_is_asked_again_for_files(hub) -> None:
    def fail_next(name: str, done: int, total: int) -> None:
        hub.failures = 4 if name == "merges.txt" else 0

    assert_pulled(hub, pull("owner/name", progress=fail_next))
    assert len(hub.downloads()) == 5 + 4
    hub.failures = 1
    assert message(pull, "owner/name") == (
        f"model 'owner/name': no download from 127.0.0.1: status 503; {AGAIN}"
    )


def test_the_token_goes_to_the_hub_and_nowhere_else(hub) -> None:
    hub.cdn = hub.url.replace("127.0.0.1", "localhost")
    assert_pulled(hub, pull("owner/name"))
    for path, _, token in hub.asked:
        assert token == (None if path.startswith("/cdn/") else "Bearer hf_secret")
    assert any(path.startswith("/cdn/") for path, _, _ in hub.asked)


def test_an_unknown_or_gated_model_is_one_clear_line(hub) -> None:
    assert message(pull, "owner/nothing") == (
        "model 'owner/nothing': not on the hub, or private; check the id, or set HF_TOKEN"
    )
    hub.gated = True
    assert message(pull, "owner/name") == (
        "model 'owner/name': gated; ask for access on its page, and set HF_TOKEN"
    )
    assert message(pull, "name") == ("model 'name': expected a hub id such as Qwen/Qwen3-0.6B")
    assert message(pull, "owner/..") == (
        "model 'owner/..': expected a hub id such as Qwen/Qwen3-0.6B"
    )


def test_what_is_no_model_of_ours_is_refused_before_its_weights(hub) -> None:
    hub.files["config.json"] = b'{"model_type": "llama"}'
    assert message(pull, "owner/name").endswith(
        "config.json: model_type = 'llama': expected 'qwen3'"
    )
    assert hub.downloads() == [("config.json", "bytes=0-")]
    del hub.files["config.json"]
    assert message(pull, "owner/name") == (
        "model 'owner/name': not a model of ours; expected config.json and safetensors in "
        "its repository"
    )


def test_a_server_that_is_no_hub_is_named(hub) -> None:
    text = f"model 'owner/name': no download from 127.0.0.1: not the answer of a model hub; {AGAIN}"
    for commit in ("../..", "", None):
        hub.commit = commit
        assert message(pull, "owner/name", "main") == text
    hub.listing = lambda: ["hello"]
    assert message(pull, "owner/name") == text


def test_no_connection_is_one_clear_line(monkeypatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    text = message(pull, "owner/name")
    assert text.startswith("model 'owner/name': no download from 127.0.0.1: [Errno ")
    assert text.endswith(f"] Connection refused; {AGAIN}")
    monkeypatch.setenv("HF_ENDPOINT", "http://[::")
    assert message(pull, "owner/name") == (
        "HF_ENDPOINT = 'http://[::': expected a URL such as https://huggingface.co"
    )


def test_offline_mode_is_respected(hub, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert message(pull, "owner/name") == (
        "model 'owner/name': HF_HUB_OFFLINE is set; unset it to download"
    )
    assert hub.asked == []


def test_a_full_disk_is_seen_before_the_download(hub, monkeypatch, home) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 20_000, 20_000))
    assert message(pull, "owner/name") == (
        "model 'owner/name': 0.00 GB to download, 0.00 GB free in "
        f"{home / 'models'}, of which 0.10 GB are to stay free; free some, or "
        "set FOURBEE_HOME to another disk"
    )
    assert hub.downloads() == []


def test_a_store_that_cannot_be_written_is_named(hub, home) -> None:
    home.write_text("a file where the folder should be")
    assert message(pull, "owner/name") == f"{home / 'models'}: cannot be written: Not a directory"


def test_a_pulled_model_is_the_model(hub) -> None:
    weights = load_weights(pull("owner/name"), ArrayOperations())
    expected = random_tensors(CONFIG)["model.embed_tokens.weight"]
    assert np.array_equal(weights.embedding, expected)


def test_a_model_that_is_being_pulled_is_not_pulled_twice_at_once(hub, home):
    lock = home / "models" / ".partial" / "owner" / "name.lock"
    lock.parent.mkdir(parents=True)
    with FileLock(lock):
        assert message(lambda: pull("owner/name")) == (
            "model 'owner/name': another `fourbee pull` of it is running; wait for its end"
        )
    assert_pulled(hub, pull("owner/name"))
