"""Models of a hub, against a server that speaks the hubs' protocols; the caches are filled by the hub's
own client.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub.server import Busy, Cut, Hub, Instead
from tuner.errors import DataError
from tuner.hub import cache, download, http, lockfile
from tuner.hub.listing import Listing, RemoteFile
from tuner.hub.lockfile import Pin
from tuner.models import fetch
from tuner.models.checkpoint.files import INDEX, PICKLED, PICKLED_INDEX, SINGLE
from tuner.models.checkpoint.repository_files import choose_files

WEIGHTS = bytes(range(256)) * 4000
"""1 MB"""
CONFIG = json.dumps(
    {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "vocab_size": 400,
    }
)
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEXED = json.dumps({"metadata": {}, "weight_map": {"a": SHARDS[1], "b": SHARDS[0], "c": SHARDS[1]}})
REPOSITORY: dict[str, bytes | str] = {
    "config.json": CONFIG,
    "generation_config.json": "{}",
    "tokenizer.json": "{}",
    "tokenizer_config.json": "{}",
    INDEX: INDEXED,
    SHARDS[0]: WEIGHTS,
    SHARDS[1]: WEIGHTS[::-1],
    "README.md": "# a model",
    ".gitattributes": "",
    "modeling_own.py": "raise SystemExit",
    "pytorch_model.bin": b"pickle",
    "consolidated.00.pth": b"pickle",
    "original/params.json": "{}",
    "onnx/model.onnx": b"x",
    "model.fp32.safetensors": b"x",
    "flax_model.msgpack": b"x",
    "logo.png": b"x",
}
MODEL = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", INDEX, *SHARDS]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "modelscope"))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            server.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nonexistent/token")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(http, "PAUSES", (0.01, 0.01, 0.01, 0.01))
        yield server


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "tuner.lock"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture(params=["hub", "modelscope"])
def source(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def look_up(
    lock: Path,
    source: str = "hub",
    revision: str | None = None,
    layout: str = "auto",
    file: str | None = None,
) -> Pin:
    name = lockfile.entry_name("model", source, "org/model", revision)
    fetch.lock_model(source, "org/model", revision, lock=lock, name=name, layout=layout, file=file, say=print)
    pin = lockfile.find_pin(lock, name)
    assert pin is not None
    return pin


def whole(out: Path) -> dict[str, bytes]:
    """What an artifact would hold."""
    assert not any(path.is_symlink() for path in out.rglob("*"))
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}


def as_bytes(names: list[str]) -> dict[str, bytes]:
    return {
        name: content.encode() if isinstance(content := REPOSITORY[name], str) else content
        for name in sorted(names)
    }


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def wanted(files: dict[str, Any], file: str | None = None) -> list[str]:
    """What is chosen of a repository; index files are read from their values."""
    listing = Listing(
        repo="org/model", commit="0" * 40, files=tuple(RemoteFile(path=path, url="") for path in files)
    )
    return choose_files(listing, lambda known: json.dumps(files[known.path]).encode(), file)


def indexed(*names: Any) -> dict[str, Any]:
    return {"weight_map": {f"t{number}": name for number, name in enumerate(names)}}


def test_the_model_is_what_its_settings_tokenizer_and_weights_are() -> None:
    weights = {
        name: ""
        for name in (
            SINGLE,
            "model.fp16.safetensors",
            PICKLED,
            "tf_model.h5",
            "consolidated.safetensors",
            "original/x.pth",
        )
    }
    assert wanted({"config.json": "", "x.py": "", "tokenizer.model": "", "qwen.tiktoken": "", **weights}) == [
        "config.json",
        "tokenizer.model",
        "qwen.tiktoken",
        SINGLE,
    ]
    assert wanted(
        {"config.json": "", INDEX: indexed(*SHARDS), SHARDS[0]: "", SHARDS[1]: "", PICKLED: ""}
    ) == ["config.json", INDEX, *SHARDS]
    bins = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
    assert wanted({"config.json": "", PICKLED_INDEX: indexed(*bins), **dict.fromkeys(bins, "")}) == [
        "config.json",
        PICKLED_INDEX,
        *bins,
    ]
    assert wanted({"config.json": "", PICKLED: "", "a.gguf": ""}) == ["config.json", PICKLED]


def test_a_gguf_file_is_the_model_where_nothing_else_is() -> None:
    assert wanted({"config.json": "", "README.md": "", "model.Q4_1.gguf": "", "mmproj-f16.gguf": ""}) == [
        "model.Q4_1.gguf"
    ]
    both = {"q4.gguf": "", "sub/q8.gguf": "", "big-00001-of-00002.gguf": ""}
    with pytest.raises(
        DataError,
        match=r"org/model holds GGUF files, q4\.gguf, sub/q8\.gguf\. Say which: model\.file=q4\.gguf",
    ):
        wanted(both)
    assert wanted(both, "sub/q8.gguf") == ["sub/q8.gguf"]
    with pytest.raises(
        DataError, match=r"model\.file=q9\.gguf should name .* is not in it\. It has q4\.gguf, sub/q8\.gguf"
    ):
        wanted(both, "q9.gguf")
    with pytest.raises(DataError, match="is not a whole GGUF file"):
        wanted(both, "big-00001-of-00002.gguf")
    with pytest.raises(DataError, match=r"has no GGUF file: leave model\.file out"):
        wanted({"config.json": "", SINGLE: ""}, SINGLE)


@pytest.mark.parametrize(
    ("files", "why"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "a PEFT adapter, not a whole model"),
        (["model_index.json", "unet/config.json", "unet/model.safetensors"], "a pipeline of several models"),
        (["config.json", "tf_model.h5"], "TensorFlow or Flax alone"),
        (["params.json", "consolidated.00.pth", "tokenizer.model"], "Meta's or Mistral's own format"),
        ([SINGLE, "README.md"], r"weights without a config\.json"),
        (["config.json", "model.fp16.safetensors"], r"weights under other names, model\.fp16\.safetensors"),
        (["x-00001-of-00002.gguf", "x-00002-of-00002.gguf"], "a GGUF file in several pieces"),
        (["README.md", "run.py"], r"no weights of a model, but README\.md, run\.py"),
        ([], "no weights of a model, but no files at all"),
    ],
)
def test_what_is_no_model_is_refused_with_what_it_is(files: list[str], why: str) -> None:
    with pytest.raises(DataError, match=f"org/model holds .*{why}") as caught:
        wanted(dict.fromkeys(files, ""))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/x.safetensors",
        "a/b.safetensors",
        "..",
        "",
        "config.json",
        "x.py",
        ".x.safetensors",
        "x\0.safetensors",
        7,
        None,
        ["x"],
        {"a": "b"},
    ],
)
def test_an_index_that_points_elsewhere_is_refused(name: Any) -> None:
    with pytest.raises(
        DataError, match=r"index\.json of org/model (names .* was expected: refused|can't be read)"
    ):
        wanted({"config.json": "", INDEX: indexed(SHARDS[0], name), SHARDS[0]: "", str(name): ""})


@pytest.mark.parametrize("content", [[], {}, {"weight_map": []}, {"weight_map": None}, "x", None])
def test_an_index_that_is_none_is_refused(content: Any) -> None:
    with pytest.raises(DataError, match=r"it should hold a `weight_map`"):
        wanted({"config.json": "", INDEX: content})


def test_an_index_must_fit_its_repository() -> None:
    with pytest.raises(DataError, match=rf"names {SHARDS[1]}, which the repository lacks"):
        wanted({"config.json": "", INDEX: indexed(*SHARDS), SHARDS[0]: ""})
    with pytest.raises(DataError, match="names no file at all"):
        wanted({"config.json": "", INDEX: indexed()})


def test_a_model_is_looked_up_once_and_brought_whole(server: Hub, lock: Path, out: Path, source: str) -> None:
    commit = server.add("org/model", REPOSITORY, kind="models")
    pin = look_up(lock, source)
    assert (pin.commit, list(pin.files), pin.layout) == (commit, MODEL, "native")
    moved = server.add("org/model", {**REPOSITORY, "config.json": "{}"}, kind="models")
    assert look_up(lock, source).commit == commit != moved
    said: list[str] = []
    fetch.download_model(source, "org/model", pin, out, said.append)
    assert whole(out) == as_bytes(MODEL)
    assert said[0] == f"org/model at {commit[:12]}: 7 files, 2.05 MB"
    assert {path for path in server.sent if path not in MODEL} == set()
    sent = sum(server.sent.values())
    fetch.download_model(source, "org/model", pin, out, print)
    assert sum(server.sent.values()) == sent
    download.remove_leftovers(out, pin.files)
    assert sorted(path.name for path in out.rglob("*")) == sorted(MODEL)


def test_the_layout_is_read_off_the_config_unless_it_is_said(server: Hub, lock: Path) -> None:
    server.add(
        "org/model", {"config.json": json.dumps({"model_type": "internlm2"}), SINGLE: WEIGHTS}, kind="models"
    )
    assert look_up(lock).layout == "internlm2"
    assert look_up(lock, revision="master", layout="native").layout == "native"
    server.add("org/model", {"a.gguf": WEIGHTS}, kind="models", refs=("gguf",))
    assert look_up(lock, revision="gguf").layout is None


def test_faults_of_the_network_are_tried_again_resumed_or_explained(
    server: Hub, lock: Path, out: Path, source: str
) -> None:
    server.add("org/model", REPOSITORY, kind="models")
    server.fail("models/org/model", 502, Busy(0), 503)
    server.fail("config.json", Instead(b"{}"), Cut(7))
    pin = look_up(lock, source)
    server.fail(SHARDS[0], Cut(300_000), 503, Busy(0), Cut(1), 500)
    server.fail(SHARDS[1], Instead(WEIGHTS))
    fetch.download_model(source, "org/model", pin, out, print)
    assert whole(out) == as_bytes(MODEL)
    assert server.sent[SHARDS[0]] == len(WEIGHTS)


def test_an_attempt_that_failed_is_gone_on_from(server: Hub, lock: Path, out: Path, source: str) -> None:
    server.add("org/model", REPOSITORY, kind="models")
    pin = look_up(lock, source)
    total = sum(pinned.size or 0 for pinned in pin.files.values())
    assert fetch.download_cost(source, "org/model", pin) == (total, 0)
    server.fail(SHARDS[1], Cut(600_000), *[503] * 5)
    with pytest.raises(DataError, match=r"can't be reached, after several attempts.*model=local"):
        fetch.download_model(source, "org/model", pin, out, print)
    assert SHARDS[1] not in whole(out)
    there = sum(
        path.stat().st_size
        for path in out.rglob("*")
        if path.is_file() and (path.suffix == ".part" or path.parent == out)
    )
    assert fetch.download_cost(source, "org/model", pin, out) == (total - there, there)
    assert there >= 600_000
    fetch.download_model(source, "org/model", pin, out, print)
    assert whole(out) == as_bytes(MODEL)
    assert server.sent[SHARDS[1]] == len(WEIGHTS)
    assert fetch.download_cost(source, "org/model", pin, out) == (0, total)


def test_wrong_bytes_are_never_published(server: Hub, lock: Path, out: Path, source: str) -> None:
    server.add("org/model", REPOSITORY, kind="models")
    pin = look_up(lock, source)
    server.fail(SHARDS[0], *[Instead(WEIGHTS[:-1] + b"?")] * 2)
    with pytest.raises(
        DataError,
        match=r"was received as 1,024,000 bytes, twice, .*the digest that the hub tells was expected",
    ):
        fetch.download_model(source, "org/model", pin, out, print)
    assert SHARDS[0] not in whole(out)


def test_a_gated_model_says_where_its_terms_are(
    server: Hub, lock: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("org/model", REPOSITORY, kind="models", token="hf_secret", gated=True)
    with pytest.raises(
        DataError, match=r"org/model is gated: .*Accept them at http://[^/]*/org/model, then set HF_TOKEN"
    ):
        look_up(lock)
    assert not lock.exists()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    pin = look_up(lock)
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(DataError, match="org/model is gated"):
        fetch.download_model("hub", "org/model", pin, out, print)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch.download_model("hub", "org/model", pin, out, print)
    assert whole(out) == as_bytes(MODEL)
    assert not any(
        "hf_secret" in str(headers) for _, path, headers in server.asked if path.startswith("/elsewhere")
    )
    assert "hf_secret" not in lock.read_text()


def test_a_model_that_is_private_or_not_there_is_explained(
    server: Hub, lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"knows no model org/model, or hides it from this account.*HF_TOKEN"):
        look_up(lock)
    with pytest.raises(DataError, match=r"ModelScope knows no model org/model.*MODELSCOPE_API_TOKEN"):
        look_up(lock, "modelscope")
    server.add("org/model", REPOSITORY, kind="models", token="secret")
    for source in ("hub", "modelscope"):
        with pytest.raises(DataError, match="hides it from this account"):
            look_up(lock, source)
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "secret")
    for source in ("hub", "modelscope"):
        assert list(look_up(lock, source).files) == MODEL
    server.expired.add("secret")
    with pytest.raises(DataError, match="The hub refuses the token"):
        look_up(lock, revision="master")
    with pytest.raises(DataError, match=r"no revision 'v9'.*Give model\.revision"):
        look_up(lock, "modelscope", revision="v9")


def test_a_commit_that_is_gone_is_said_with_what_to_do(
    server: Hub, lock: Path, out: Path, source: str
) -> None:
    server.add("org/model", REPOSITORY, kind="models")
    pin = look_up(lock, source)
    server.repos["models", "org/model"].commits.clear()
    server.add("org/model", {**REPOSITORY, "README.md": "squashed"}, kind="models")
    with pytest.raises(
        DataError,
        match=rf"The lock's entry for org/model is at the commit {pin.commit[:12]}, and .* no longer has it",
    ):
        fetch.download_model(source, "org/model", pin, out, print)
    assert whole(out) == {}


def cached(server: Hub, path: Path, **more: Any) -> None:
    """Have the hub's own client fill its cache."""
    from huggingface_hub import snapshot_download

    snapshot_download("org/model", cache_dir=path, endpoint=server.url, **more)


def test_what_the_hubs_client_has_is_linked_or_copied_and_not_downloaded(
    server: Hub, lock: Path, out: Path, tmp_path: Path
) -> None:
    server.add("org/model", REPOSITORY, kind="models")
    cached(server, tmp_path / "cache", allow_patterns=["*.safetensors", "config.json"])
    pin = look_up(lock)
    small = sum(pin.files[name].size or 0 for name in MODEL if name not in (*SHARDS, "config.json"))
    total = sum(pinned.size or 0 for pinned in pin.files.values())
    assert fetch.download_cost("hub", "org/model", pin) == (small, total - small)
    server.sent.clear()
    said: list[str] = []
    fetch.download_model("hub", "org/model", pin, out, said.append)
    assert said[1] == "3 files, 2.05 MB, were here already"
    assert sum(server.sent.values()) == small
    assert whole(out) == as_bytes(MODEL)
    shutil.rmtree(tmp_path / "cache")
    assert whole(out) == as_bytes(MODEL)


def test_a_cached_file_that_is_damaged_or_leads_elsewhere_is_not_taken(
    server: Hub, lock: Path, out: Path, tmp_path: Path
) -> None:
    server.add("org/model", REPOSITORY, kind="models")
    cached(server, tmp_path / "cache")
    pin = look_up(lock)
    blobs = tmp_path / "cache" / "models--org--model" / "blobs"
    damaged, away = (blobs / str(pin.files[name].sha256) for name in SHARDS)
    damaged.write_bytes(WEIGHTS[:-1] + b"?")
    away.rename(tmp_path / "elsewhere")
    away.symlink_to(tmp_path / "elsewhere")
    said: list[str] = []
    fetch.download_model("hub", "org/model", pin, out, said.append)
    assert any("is damaged, and is not used" in line for line in said)
    assert whole(out) == as_bytes(MODEL)


def test_the_cache_is_enough_without_a_network(
    server: Hub, lock: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = server.add("org/model", REPOSITORY, kind="models")
    online = look_up(tmp_path / "other.lock")
    cached(server, tmp_path / "cache")
    asked = len(server.asked)
    offline(monkeypatch)
    assert look_up(lock) == online
    assert look_up(lock, revision=commit).files == online.files
    fetch.download_model("hub", "org/model", online, out, print)
    assert whole(out) == as_bytes(MODEL)
    assert len(server.asked) == asked


def test_what_the_cache_lacks_is_said_without_a_network(
    server: Hub, lock: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("org/model", REPOSITORY, kind="models")
    pin = look_up(tmp_path / "other.lock")
    offline(monkeypatch)
    with pytest.raises(
        DataError,
        match=r"org/model has to be downloaded, and HF_HUB_OFFLINE forbids it.*model=local model\.path=DIR",
    ):
        look_up(lock)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    cached(server, tmp_path / "cache", allow_patterns=["config.json", INDEX, SHARDS[0]])
    offline(monkeypatch)
    with pytest.raises(
        DataError,
        match=(
            rf"{SHARDS[1]}, which the repository lacks.*This is what .*cache has of it, and HF_HUB_OFFLINE"
            r" forbids"
        ),
    ):
        look_up(lock)
    with pytest.raises(DataError, match=r"HF_HUB_OFFLINE forbids it.*model=local"):
        fetch.download_model("hub", "org/model", pin, out, print)
    assert sorted(whole(out)) == sorted(["config.json", INDEX, SHARDS[0]])


def test_a_cache_that_lies_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder, commit = tmp_path / "models--org--model", "a" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "blobs").mkdir()
    (folder / "snapshots" / commit).mkdir(parents=True)
    (tmp_path / "secret").write_text("mine")
    (folder / "snapshots" / commit / "config.json").symlink_to(tmp_path / "secret")
    (folder / "refs" / "main").write_text(commit)
    found = cache.resolve_cached("org/model", None)
    assert found is not None
    assert found.files == ()
    (folder / "refs" / "main").write_text("../../..")
    assert cache.resolve_cached("org/model", None) is None
    assert cache.resolve_cached("org/model", "../snapshots") is None
    assert cache.resolve_cached("org/model", "b" * 40) is None


def test_where_the_caches_are_follows_the_clients_own_rules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "MODELSCOPE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.huggingface_cache() == tmp_path / ".cache" / "huggingface" / "hub"
    assert cache.modelscope_cache() == tmp_path / ".cache" / "modelscope" / "hub"
    for name, value, path in (
        ("XDG_CACHE_HOME", "/x", "/x/huggingface/hub"),
        ("HF_HOME", "/h", "/h/hub"),
        ("HF_HUB_CACHE", "~/c", f"{tmp_path}/c"),
    ):
        monkeypatch.setenv(name, value)
        assert cache.huggingface_cache() == Path(path)


def test_what_modelscopes_client_has_is_taken_too(server: Hub, lock: Path, out: Path, tmp_path: Path) -> None:
    server.add("org/model", REPOSITORY, kind="models")
    pin = look_up(lock, "modelscope")
    there = tmp_path / "modelscope" / "models" / "org" / "model"
    there.mkdir(parents=True)
    (there / SHARDS[0]).write_bytes(WEIGHTS)
    (there / SHARDS[1]).write_bytes(b"short")
    fetch.download_model("modelscope", "org/model", pin, out, print)
    assert whole(out) == as_bytes(MODEL)
    assert SHARDS[0] not in server.sent
    assert cache.find_cached("modelscope", "org/model-1.5", SINGLE, pin.files[SHARDS[0]]) is None
    (there.parent / "model-1___5").mkdir()
    (there.parent / "model-1___5" / SINGLE).write_bytes(WEIGHTS)
    assert (
        cache.find_cached("modelscope", "org/model-1.5", SINGLE, pin.files[SHARDS[0]])
        == there.parent / "model-1___5" / SINGLE
    )
