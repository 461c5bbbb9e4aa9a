import errno
import json
import resource
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.hub.server import Busy, Cut, Hub, Instead
from tuner.data import fetch as data
from tuner.errors import DataError
from tuner.hub import download, http, huggingface, listing, modelscope
from tuner.hub.lockfile import Pin

BIG = bytes(range(256)) * 8000
"""2 MB"""
ROWS = b'{"text": "hello"}\n'

Fetch = Callable[..., dict[str, Any]]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    with Hub() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent/token")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(http, "PAUSES", (0.01, 0.01, 0.01, 0.01))
        yield server


@pytest.fixture
def out(tmp_path: Path) -> Path:
    path = tmp_path / "out"
    path.mkdir()
    return path


def take(
    module: Any,
    out: Path,
    repo: str,
    revision: str | None = None,
    patterns: list[str] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Look up, or take the `pin` given, and download."""
    pin = more.pop("pin", None) or data.pin_files(module, repo, revision, patterns)
    facts: dict[str, Any] = data.download_files(module, repo, pin, out, more.pop("say", print), **more)
    return facts


@pytest.fixture(params=["hub", "modelscope"])
def source(request: pytest.FixtureRequest) -> Any:
    return {"hub": huggingface, "modelscope": modelscope}[request.param]


@pytest.fixture
def fetch(source: Any, out: Path) -> Fetch:
    """Both halves for one hub, into `out`."""
    return partial(take, source, out)


def published(out: Path) -> dict[str, bytes]:
    """What an artifact would hold."""
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}


def test_the_training_files_come_under_names_that_keep_their_order(
    server: Hub, fetch: Fetch, out: Path
) -> None:
    files = {f"data/train-0000{i}-of-00002.parquet": BIG[i : i + 5000] for i in (1, 0)}
    commit = server.add(
        "org/name", {**files, "data/test-00000-of-00001.parquet": b"no", "README.md": "# no header"}
    )
    said: list[str] = []
    facts = fetch("org/name", say=said.append)
    names = [f"000{i}-data-train-0000{i}-of-00002.parquet" for i in (0, 1)]
    assert facts == {
        "repo": "org/name",
        "commit": commit,
        "files": dict(zip(names, sorted(files), strict=True)),
    }
    assert published(out) == {name: files[path] for name, path in facts["files"].items()}
    assert said == [f"org/name at {commit[:12]}: 2 files, 10.0 kB"]
    assert "data/test-00000-of-00001.parquet" not in server.sent
    assert list(fetch("org/name", prefix="p01-")["files"]) == [f"p01-{name}" for name in names]


def test_the_card_and_patterns_choose_the_files(server: Hub, fetch: Fetch, out: Path) -> None:
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: a.jsonl\n---\n"
    server.add("org/name", {"a.jsonl": ROWS, "train.jsonl": b"no", "b.jsonl": ROWS * 2, "README.md": card})
    assert list(fetch("org/name")["files"].values()) == ["a.jsonl"]
    download.remove_leftovers(out, [])
    assert fetch("org/name", None, ["b*"], prefix="p01-")["files"] == {"p01-0000-b.jsonl": "b.jsonl"}
    assert published(out) == {"p01-0000-b.jsonl": ROWS * 2}


def test_a_listing_of_many_pages_is_read_to_its_end(server: Hub, fetch: Fetch) -> None:
    server.page = 7
    server.add("org/name", {f"part-{i:03d}.jsonl": ROWS for i in range(250)})
    assert len(fetch("org/name", None, ["part-*9.jsonl"])["files"]) == 25


def test_a_branch_a_tag_and_a_commit_name_what_they_name(server: Hub, fetch: Fetch, out: Path) -> None:
    old = server.add("org/name", {"a.jsonl": ROWS}, refs=("main", "master", "v1"))
    new = server.add("org/name", {"a.jsonl": ROWS * 2})
    for revision, commit in ((None, new), ("v1", old), (old, old)):
        download.remove_leftovers(out, [])
        assert fetch("org/name", revision)["commit"] == commit
        assert published(out)["0000-a.jsonl"] == ROWS * (1 if commit == old else 2)


def test_what_fails_for_a_moment_is_asked_again(server: Hub, fetch: Fetch, out: Path) -> None:
    server.add("org/name", {"train.jsonl": BIG})
    server.fail("train.jsonl", 503, Busy(0), 500)
    server.fail("datasets/org/name", 502, Busy(0, 503))
    fetch("org/name")
    assert published(out) == {"0000-train.jsonl": BIG}


def test_a_connection_that_breaks_goes_on_where_it_was(server: Hub, fetch: Fetch, out: Path) -> None:
    server.add("org/name", {"train.jsonl": BIG})
    server.fail("train.jsonl", Cut(500_000), Cut(1), 503, Cut(1_000_000))
    fetch("org/name")
    assert published(out) == {"0000-train.jsonl": BIG}
    assert server.sent["train.jsonl"] == len(BIG)


def test_a_server_that_says_when_to_come_again_is_asked_then(
    server: Hub, source: Any, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    monkeypatch.setattr(http, "PAUSES", (0.5, 0.5, 0.5, 0.5))
    server.add("org/name", {"train.jsonl": ROWS})
    server.fail("datasets/org/name", Busy(7), Busy(3600))
    data.pin_files(source, "org/name", None, None)
    assert [seconds for seconds in waited if seconds > 1] == [7.0, http.LONGEST_RETRY_AFTER]


def test_a_card_that_is_cut_or_changed_on_the_way_chooses_nothing(server: Hub, source: Any) -> None:
    card = "---\nconfigs:\n- config_name: default\n  data_files: a.jsonl\n---\n"
    server.add("org/name", {"a.jsonl": ROWS, "b.jsonl": ROWS, "README.md": card})
    server.fail("README.md", Cut(10), Instead(card.replace("a.", "b.").encode()))
    assert list(data.pin_files(source, "org/name", None, None).files) == ["a.jsonl"]
    server.fail("README.md", Instead(b"short"), Instead(b"short"))
    with pytest.raises(DataError, match=r"README\.md was received as 5 bytes, twice"):
        data.pin_files(source, "org/name", None, None)


def test_an_attempt_that_failed_is_gone_on_from_at_the_commit_of_the_pin(
    server: Hub, source: Any, fetch: Fetch, out: Path
) -> None:
    commit = server.add("org/name", {"a.jsonl": ROWS, "b.jsonl": BIG})
    pin = data.pin_files(source, "org/name", None, None)
    assert (pin.commit, list(pin.files)) == (commit, ["a.jsonl", "b.jsonl"])
    server.fail("b.jsonl", Cut(700_000), *[503] * 5)
    with pytest.raises(DataError, match=r"http://.* can't be reached, after several attempts: .*503"):
        fetch("org/name", pin=pin)
    assert published(out) == {"0000-a.jsonl": ROWS}
    assert download.describe_progress(out) == "700 kB of 2.05 MB"
    server.add("org/name", {"a.jsonl": b"other", "b.jsonl": b"others"})
    asked = len(server.asked)
    assert fetch("org/name", pin=pin)["commit"] == commit
    assert [
        path
        for _, path, _ in server.asked[asked:]
        if "/tree" in path or "/info" in path or "/revision" in path
    ] == []
    assert published(out) == {"0000-a.jsonl": ROWS, "0001-b.jsonl": BIG}
    assert server.sent == {"a.jsonl": len(ROWS), "b.jsonl": len(BIG)}
    download.remove_leftovers(out, ["0000-a.jsonl", "0001-b.jsonl"])
    assert sorted(path.name for path in out.rglob("*")) == ["0000-a.jsonl", "0001-b.jsonl"]


def test_a_mirror_goes_on_from_what_another_server_gave(
    server: Hub, source: Any, fetch: Fetch, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("org/name", {"a.jsonl": ROWS, "b.jsonl": BIG})
    pin = data.pin_files(source, "org/name", None, None)
    server.fail("b.jsonl", Cut(700_000), *[503] * 5)
    with pytest.raises(DataError, match="HF_ENDPOINT or MODELSCOPE_ENDPOINT a mirror"):
        fetch("org/name", pin=pin)
    asked = len(server.asked)
    with Hub() as mirror:
        mirror.add("org/name", {"a.jsonl": ROWS, "b.jsonl": BIG})
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", mirror.url)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", mirror.url)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            mirror.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        fetch("org/name", pin=pin)
        assert mirror.sent == {"b.jsonl": len(BIG) - 700_000}
    assert published(out) == {"0000-a.jsonl": ROWS, "0001-b.jsonl": BIG}
    assert len(server.asked) == asked


def test_a_commit_that_is_gone_is_said_with_what_to_do(server: Hub, source: Any, fetch: Fetch) -> None:
    commit = server.add("org/name", {"train.jsonl": BIG})
    pin = data.pin_files(source, "org/name", None, None)
    server.repos["datasets", "org/name"].commits.clear()
    server.add("org/name", {"train.jsonl": ROWS, "README.md": "squashed"}, refs=("main", "master"))
    with pytest.raises(
        DataError,
        match=(
            rf"at the commit {commit[:12]}, and .* no longer has it.*Remove the entry of org/name from the"
            r" lock file"
        ),
    ) as caught:
        fetch("org/name", pin=pin)
    assert "\n" not in str(caught.value)


def test_a_file_that_another_commit_changed_last_is_asked_for_at_that_one(server: Hub, out: Path) -> None:
    first = server.add("org/name", {"a.jsonl": ROWS, "b.jsonl": ROWS})
    last = server.add("org/name", {"a.jsonl": ROWS, "b.jsonl": BIG})
    pin = data.pin_files(modelscope, "org/name", None, None)
    assert (pin.commit, pin.files["a.jsonl"].revision, pin.files["b.jsonl"].revision) == (last, first, None)
    take(modelscope, out, "org/name", pin=pin)
    asked = [path for _, path, _ in server.asked if "FilePath=a.jsonl" in path]
    assert f"Revision={first}" in asked[0]
    assert published(out) == {"0000-a.jsonl": ROWS, "0001-b.jsonl": BIG}


def test_how_much_is_there_needs_no_note_of_how_much_there_is(out: Path) -> None:
    assert download.describe_progress(out) is None
    (out / "0000-a.json").write_bytes(ROWS)
    assert download.describe_progress(out) == f"{len(ROWS)} bytes"


def test_what_was_damaged_on_the_disk_meanwhile_is_found(server: Hub, fetch: Fetch, out: Path) -> None:
    server.add("org/name", {"a.jsonl": BIG, "b.jsonl": ROWS})
    fetch("org/name")
    (out / "0000-a.jsonl").write_bytes(BIG[::-1])
    (out / "0001-b.jsonl").unlink()
    fetch("org/name")
    assert published(out) == {"0000-a.jsonl": BIG, "0001-b.jsonl": ROWS}


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (BIG[:-10], "received as 2,047,990 bytes, twice, .*2,048,000 bytes was expected"),
        (BIG + b"more", "twice.*2,048,000 bytes was expected"),
        (BIG[:-1] + b"?", "the digest that the hub tells was expected"),
    ],
    ids=["truncated", "longer", "changed"],
)
def test_a_file_that_is_not_what_the_hub_says_is_taken_once_more_and_then_refused(
    server: Hub, fetch: Fetch, out: Path, wrong: bytes, expected: str
) -> None:
    server.add("org/name", {"train.jsonl": BIG})
    server.fail("train.jsonl", *[Instead(wrong)] * 8)
    with pytest.raises(DataError, match=expected):
        fetch("org/name")
    assert published(out) == {}
    server.faults.clear()
    server.fail("train.jsonl", Instead(wrong))
    fetch("org/name")
    assert published(out) == {"0000-train.jsonl": BIG}


def test_a_small_file_is_checked_by_its_name_in_git(server: Hub, out: Path) -> None:
    server.add("org/name", {"train.jsonl": ROWS})
    server.fail("train.jsonl", Instead(ROWS.upper()), Instead(ROWS.upper()))
    with pytest.raises(DataError, match="the digest that the hub tells was expected"):
        take(huggingface, out, "org/name")


def test_an_empty_file_is_a_file(server: Hub, fetch: Fetch, out: Path) -> None:
    server.add("org/name", {"a.jsonl": b"", "b.jsonl": ROWS})
    fetch("org/name")
    assert published(out) == {"0000-a.jsonl": b"", "0001-b.jsonl": ROWS}


def test_a_data_set_that_is_not_there_is_refused(server: Hub, out: Path) -> None:
    with pytest.raises(
        DataError, match=r"no data set org/nmae, or hides it from this account.*HF_TOKEN.*hf auth login"
    ):
        take(huggingface, out, "org/nmae")
    with pytest.raises(DataError, match=r"ModelScope knows no data set org/nmae.*MODELSCOPE_API_TOKEN"):
        take(modelscope, out, "org/nmae")
    with pytest.raises(DataError, match="no model org/nmae"):
        huggingface.resolve("org/nmae", None, repo_type="model")
    assert list(out.iterdir()) == []


def test_a_token_opens_what_is_private_and_goes_nowhere_else(
    server: Hub, fetch: Fetch, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("org/name", {"train.parquet": BIG}, token="hf_secret")
    with pytest.raises(DataError, match="hides it from this account"):
        fetch("org/name")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "hf_secret")
    said: list[str] = []
    facts = fetch("org/name", say=said.append)
    assert published(out) == {"0000-train.parquet": BIG}
    others = [headers for _, path, headers in server.asked if path.startswith("/elsewhere")]
    assert not any("hf_secret" in str(headers) for headers in others)
    notes = [path.read_text() for path in (out / download.PARTS).iterdir()]
    assert "hf_secret" not in json.dumps([facts, said, notes])


def test_pages_that_are_elsewhere_are_read_and_told_no_token(
    server: Hub, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.page, server.pages_at = 2, server.elsewhere
    server.add("org/name", {f"part-{i}.jsonl": ROWS for i in range(5)})
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert len(take(huggingface, out, "org/name")["files"]) == 5
    pages = [headers for _, path, headers in server.asked if "/tree/" in path]
    told = {headers["Host"].partition(":")[0]: str(headers) for headers in pages}
    assert "hf_secret" in told["127.0.0.1"]
    assert "hf_secret" not in told["localhost"]


def test_a_password_in_the_address_of_a_server_is_not_shown(
    fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = "http://me:geheim99@127.0.0.1:9"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", nobody)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", nobody)
    monkeypatch.setattr(http, "PAUSES", (0.0,) * 4)
    with pytest.raises(DataError, match=r"can't be reached|refuses|hides") as caught:
        fetch("org/name")
    assert "geheim99" not in str(caught.value)
    refused = http.HttpRefused(500, f"{nobody}/x")
    for hub in (huggingface, modelscope):
        assert "geheim99" not in f"{refused} {hub.refusal('org/name', refused)}"


def test_a_gated_set_says_where_its_terms_are(
    server: Hub, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("org/name", {"train.jsonl": ROWS}, token="hf_secret", gated=True)
    with pytest.raises(
        DataError, match=r"org/name is gated: .*Accept them at http://.*/datasets/org/name, then set HF_TOKEN"
    ):
        take(huggingface, out, "org/name")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(DataError, match=r"org/name is gated: "):
        take(huggingface, out, "org/name")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    take(huggingface, out, "org/name")
    assert published(out) == {"0000-train.jsonl": ROWS}


def test_a_token_that_expired_is_told_from_a_set_that_is_not_there(
    server: Hub, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("org/name", {"train.jsonl": ROWS})
    server.expired.add("hf_old")
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    with pytest.raises(
        DataError, match=r"The hub refuses the token that was sent.*Renew it: set HF_TOKEN.*or unset it"
    ) as caught:
        take(huggingface, out, "org/name")
    assert "hf_old" not in str(caught.value)


def test_a_revision_that_is_not_there_is_refused_with_those_that_are(server: Hub, out: Path) -> None:
    server.add("org/name", {"train.jsonl": ROWS}, refs=("main", "master", "v1.0", "refs/convert/parquet"))
    with pytest.raises(DataError, match=r"no revision 'v1\.1'; there is v1\.0"):
        take(huggingface, out, "org/name", "v1.1")
    with pytest.raises(
        DataError, match=r"no revision 'zzz'; there is main, master, v1\.0, refs/convert/parquet\."
    ):
        take(huggingface, out, "org/name", "zzz")
    with pytest.raises(DataError, match=r"no revision 'zzz' on ModelScope.*`master` is the default"):
        take(modelscope, out, "org/name", "zzz")


def test_a_script_is_never_run_and_its_parquet_copy_is_found(server: Hub, out: Path) -> None:
    server.add("org/name", {"name.py": "raise SystemExit('run')", "data.tar": b"x"})
    with pytest.raises(DataError, match=r"never run here.*data\.revision=refs/convert/parquet"):
        take(huggingface, out, "org/name")
    server.add(
        "org/name",
        {"main/train/0000.parquet": BIG, "main/test/0000.parquet": b"x"},
        refs=("refs/convert/parquet",),
    )
    assert list(take(huggingface, out, "org/name", "refs/convert/parquet")["files"]) == [
        "0000-main-train-0000.parquet"
    ]
    assert "name.py" not in server.sent


def test_a_pickle_is_not_even_downloaded(server: Hub, fetch: Fetch) -> None:
    server.add("org/name", {"train.pkl": b"cos\nsystem\n", "train.jsonl": ROWS})
    with pytest.raises(DataError, match=r"matches train\.pkl, which can't be read as rows"):
        fetch("org/name", None, ["*.pkl"])
    assert "train.pkl" not in server.sent


def test_the_environment_may_forbid_to_ask(server: Hub, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="org/name has to be downloaded, and HF_HUB_OFFLINE forbids it"):
        take(huggingface, out, "org/name")
    with pytest.raises(DataError, match=r"HF_HUB_OFFLINE forbids it.*data=local"):
        data.download_files(huggingface, "org/name", Pin(commit="0" * 40, files={}), out, print)
    with pytest.raises(DataError, match=r"HF_HUB_OFFLINE forbids it.*model=local"):
        huggingface.resolve("org/name", None, repo_type="model")
    assert server.asked == []


def test_a_server_that_is_not_there_is_said_in_one_paragraph(
    server: Hub, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", url)
    with pytest.raises(DataError, match=rf"{url} can't be reached, .*refused.*data=local") as caught:
        fetch("org/name")
    assert "\n" not in str(caught.value)


def test_an_answer_of_another_kind_of_server_is_refused(
    server: Hub, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.fail("api/v1", 418)
    with pytest.raises(DataError, match="with the status 418"):
        take(modelscope, out, "org/name")
    server.add("org/name", {"train.jsonl": b"[]"})
    monkeypatch.setattr(http, "get", lambda *_args, **_more: b"<html>")
    with pytest.raises(DataError, match="something else than ModelScope's list"):
        take(modelscope, out, "org/name")


def test_a_full_disk_is_an_error_of_the_disk(server: Hub, fetch: Fetch) -> None:
    server.add("org/name", {"train.jsonl": BIG})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            fetch("org/name")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert server.sent["train.jsonl"] <= len(BIG)


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", ".parts/x", "a//x", "x\0", "", ".", "a/\n"])
def test_a_name_that_leads_out_of_the_directory_or_hides_is_refused(out: Path, name: str) -> None:
    wanted = {name: listing.RemoteFile(path="x", url="http://127.0.0.1/x")}
    with pytest.raises(DataError, match="would lie outside its directory or be hidden"):
        download.fetch_files(wanted, out, {}, print)
    with pytest.raises(DataError, match="would lie outside its directory or be hidden"):
        download.begin_download("org/name", "0" * 40, wanted, "hub", out, print)
    assert list(out.parent.rglob("*")) == [out]


def test_an_address_of_anything_but_the_web_is_refused(out: Path) -> None:
    with pytest.raises(DataError, match="not a web address"):
        download.fetch_files({"x": listing.RemoteFile(path="x", url="file:///etc/passwd")}, out, {}, print)


def test_models_come_by_the_same_means(server: Hub, source: Any, out: Path) -> None:
    commit = server.add("org/model", {"config.json": "{}", "sub/model.safetensors": BIG}, kind="models")
    found = source.resolve("org/model", None, repo_type="model")
    assert (found.repo, found.commit) == ("org/model", commit)
    pin = found.pin(["sub/model.safetensors", "config.json"])
    assert list(pin.files) == ["sub/model.safetensors", "config.json"]
    download.fetch_files(source.remote_files("org/model", pin, "model"), out, source.headers(), print)
    assert (out / "sub" / "model.safetensors").read_bytes() == BIG
    with pytest.raises(DataError, match=r"no revision 'zzz'.*model\.revision"):
        source.resolve("org/model", "zzz", repo_type="model")


def test_names_are_short_enough_and_printable() -> None:
    (name,) = listing.local_names(["目录/" * 80 + "行\x1b[2J.jsonl"])
    assert name.startswith("0000-")
    assert name.endswith("行_[2J.jsonl")
    assert len(name.encode()) <= 255
