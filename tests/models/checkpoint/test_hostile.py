"""A malicious checkpoint runs nothing, writes nothing outside its directory, allocates nothing, and
is refused in one paragraph.
"""

import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from tests.conftest import REPO, SHARED
from tests.hub.server import Hub
from tuner.errors import DataError
from tuner.hub import lockfile
from tuner.models import fetch
from tuner.models.checkpoint.config_limits import check_config
from tuner.models.checkpoint.files import SINGLE
from tuner.models.checkpoint.headers import HEADER, read_header
from tuner.models.checkpoint.safetensors import read_specs

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 400,
    "max_position_embeddings": 512,
    "sliding_window": None,
}


class Payload:
    """Unpickled by a loader that obeys, it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return exec, (f"open({str(self.target)!r}, 'w').close()",)


def tensor(first: Any, last: Any, shape: Any = None, dtype: Any = "F32") -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": [(last - first) // 4] if shape is None else shape,
        "data_offsets": [first, last],
    }


def written(path: Path, header: str | bytes | dict[str, Any], body: int = 16) -> Path:
    text = (
        header
        if isinstance(header, bytes)
        else (header if isinstance(header, str) else json.dumps(header)).encode()
    )
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(body))
    return path


def one_paragraph(error: BaseException) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 1000


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ({"a": tensor(0, 8), "b": tensor(4, 16)}, "'b' begin at 4, where what is before it ends at 8"),
        ({"a": tensor(0, 16), "b": tensor(0, 16)}, "'b' begin at 0, where what is before it ends at 16"),
        ({"a": tensor(0, 4), "b": tensor(8, 16)}, "'b' begin at 8, where what is before it ends at 4"),
        ({"a": tensor(4, 16)}, "'a' begin at 4, where what is before it ends at 0"),
        ({"a": tensor(0, 1 << 40)}, "is 108 bytes long where its header says"),
        ({"a": tensor(-8, 8)}, "'a' begin at -8"),
        ({"a": tensor(16, 0, [4])}, "gives 'a' -16 bytes"),
        (
            {"a": tensor(0, 16, [1 << 40])},
            "gives 'a' 16 bytes, and F32 of the shape .* has 4,398,046,511,104",
        ),
        ({"a": tensor(0, 16, [2])}, "gives 'a' 16 bytes, and F32 of the shape .2. has 8"),
        ({"a": tensor(0, 16, [-2, -2])}, "the shape .-2, -2."),
        ({"a": tensor(0, 0, [0, 1 << 62])}, "which no tensor has"),
        ({"a": tensor(0, 16, [True, 4])}, "the shape .True, 4."),
        ({"a": tensor(0, 16, [4.0])}, "the shape .4.0."),
        ({"a": tensor(0, 16, [1] * 9 + [4])}, "which no tensor has"),
        ({"a": tensor(0, 16, "4")}, "gives 'a' the shape 4"),
        ({"a": tensor(0, 16, {"0": 4})}, "gives 'a' the shape"),
        (
            {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16, 32]}},
            "does not have two offsets for 'a'",
        ),
        (
            {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0.0, 16.0]}},
            "does not have two offsets for 'a'",
        ),
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": "0"}}, "does not have two offsets for 'a'"),
        ({"a": tensor(0, 16, dtype=["F32"])}, "tensors of type"),
        ({"a": tensor(0, 16, dtype="OBJECT")}, "tensors of type OBJECT"),
        ({"a": [0, 16]}, "not a safetensors header"),
        ({"a": {"dtype": "F32"}}, "not a safetensors header"),
        (
            (
                '{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}, "a": {"dtype": "F32",'
                ' "shape": [4], "data_offsets": [0, 16]}}'
            ),
            "a name is in it twice",
        ),
        ('{"a": ' * 100_000, "not a safetensors header .nested too deeply"),
        (
            '{"a": {"dtype": "F32", "shape": [' + "9" * 5000 + '], "data_offsets": [0, 16]}}',
            "not a safetensors header",
        ),
        (b"\xff\xfe{}", "not a safetensors header"),
        ("null", "not a safetensors header"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: Any, why: str) -> None:
    path = written(tmp_path / SINGLE, header)
    with pytest.raises(DataError, match=why) as caught:
        read_specs(path)
    one_paragraph(caught.value)
    read_header(path)  # the guesses of a plan survive it, whatever they say


def test_a_header_of_more_than_the_format_allows_is_not_even_read(tmp_path: Path) -> None:
    path = tmp_path / SINGLE
    with path.open("wb") as file:
        file.write((HEADER + 1).to_bytes(8, "little"))
        file.truncate(HEADER + 100)
    with pytest.raises(
        DataError, match="its header is 100,000,001 bytes long, where the format allows 100,000,000"
    ):
        read_specs(path)
    assert read_header(path) == ({}, 0)


@settings(
    derandomize=True,
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.tuples(st.integers(-4, 24), st.integers(-4, 24), st.lists(st.integers(-1, 5), max_size=3)),
        max_size=3,
    ),
    st.integers(0, 24),
    st.booleans(),
)
def test_what_is_accepted_is_what_safetensors_accepts(
    tmp_path: Path, tensors: list[tuple[int, int, list[int]]], body: int, exact: bool
) -> None:
    header, end = {}, 0
    for number, (first, last, shape) in enumerate(tensors):
        sides = [abs(side) for side in shape] if exact else shape
        size = torch.Size(sides).numel()
        header[f"t{number}"] = {
            "dtype": "U8",
            "shape": sides,
            "data_offsets": [end, end + size] if exact else [first, last],
        }
        end += size if exact else 0
    path = written(tmp_path / "x.safetensors", header, end if exact else body)
    try:
        with safe_open(path, framework="pt") as file:
            truth = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError:
        truth = None
    try:
        found = {name: spec.shape for name, spec in read_specs(path).items()}
    except DataError as error:
        one_paragraph(error)
        found = None
    assert found == truth


@pytest.mark.parametrize("form", ["bare", "zip", "old"])
def test_a_pickle_in_the_place_of_safetensors_is_not_opened(tmp_path: Path, form: str) -> None:
    path, mark = tmp_path / SINGLE, tmp_path / "ran"
    if form == "bare":
        path.write_bytes(pickle.dumps({"w": Payload(mark)}))
    else:
        torch.save({"w": Payload(mark)}, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(
        DataError, match="is a pickle of PyTorch's under another name: it is not opened"
    ) as caught:
        read_specs(path)
    one_paragraph(caught.value)
    assert not mark.exists()
    assert read_header(path) == ({}, 0)


def test_sizes_that_a_model_can_have_are_accepted() -> None:
    check_config(LLAMA)
    check_config(
        {
            "model_type": "gemma3",
            "text_config": LLAMA,
            "vision_config": {"hidden_size": 1152, "intermediate_size": [1, 2]},
        }
    )
    check_config(
        {
            **LLAMA,
            "hidden_size": 16384,
            "num_hidden_layers": 126,
            "intermediate_size": 53248,
            "vocab_size": 128256,
        }
    )
    check_config(
        {
            **LLAMA,
            "hidden_size": 7168,
            "num_hidden_layers": 61,
            "n_routed_experts": 384,
            "moe_intermediate_size": 2048,
            "q_lora_rank": None,
        }
    )
    check_config({"model_type": "qwen", "seq_length": 8192, "num_experts": 0, "n_shared_experts": None})


def test_every_model_of_the_catalogue_can_exist() -> None:
    geometries = [
        yaml.safe_load(path.read_text(encoding="utf-8")).get("geometry")
        for path in (REPO / "conf" / "model").glob("*.yaml")
    ]
    configs = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in (SHARED / "fixtures" / "models").glob("*/config.json")
    ]
    for config in filter(None, [*geometries, *configs]):
        check_config(config)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"hidden_size": 10**12}, r"hidden_size 1000000000000, where a whole number up to 1,048,576"),
        ({"hidden_size": -64}, "hidden_size -64"),
        ({"hidden_size": 0}, "hidden_size 0"),
        ({"hidden_size": "64"}, "hidden_size 64"),
        ({"hidden_size": True}, "hidden_size True"),
        ({"hidden_size": 64.5}, "hidden_size 64.5"),
        ({"hidden_size": float("nan")}, "hidden_size nan"),
        ({"hidden_size": {"a": 1}}, "hidden_size"),
        ({"vocab_size": 10**4000}, "vocab_size 1000"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers 1000000"),
        ({"num_local_experts": 10**6}, "num_local_experts"),
        ({"max_position_embeddings": 1 << 40}, "max_position_embeddings"),
        ({"intermediate_size": [128, 10**12]}, "intermediate_size 1000000000000"),
        ({"text_config": {"hidden_size": 10**12}}, r"text_config\.hidden_size 1000000000000"),
        ({"blocks": [{"hidden_size": 10**12}]}, r"blocks\.hidden_size 1000000000000"),
        ({"hidden_size": 1 << 20, "num_hidden_layers": 1 << 12}, "weights, where at most 10,000,000,000,000"),
        ({"hidden_size": 1 << 20, "vocab_size": 1 << 24}, "weights, where at most"),
        ({"architectures": {"0": "x"}}, "architectures"),
        ({"architectures": [{}]}, "architectures"),
        ({"model_type": ["llama"]}, "model_type"),
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_allocated(change: dict[str, Any], why: str) -> None:
    with pytest.raises(DataError, match=why) as caught:
        check_config({**LLAMA, **change})
    one_paragraph(caught.value)


def test_a_config_that_is_nested_without_end_is_refused() -> None:
    deep: Any = {}
    for _ in range(200):
        deep = {"a": [deep]}
    with pytest.raises(DataError, match="nested more than 16 levels deep"):
        check_config(deep)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[1, 2]", "holds a list"),
        (b"null", "holds a NoneType"),
        (b"{", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b'{"a":' * 100_000, r"is not JSON that can be read \(ValueError\)"),
        (b'{"vocab_size": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b" " * (17 << 20), "17,825,792 bytes long, which no model's config is"),
    ],
    ids=["list", "null", "cut", "bytes", "deep", "long number", "large"],
)
def test_a_config_that_is_none_is_refused(content: bytes, why: str) -> None:
    with pytest.raises(DataError, match=why) as caught:
        fetch.parse_hub_config(content, "config.json of org/model")
    one_paragraph(caught.value)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            server.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nonexistent/token")
        yield server


@pytest.mark.parametrize("source", ["hub", "modelscope"])
@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"config.json": b"[]", SINGLE: b"x"}, "holds a list"),
        (
            {"config.json": json.dumps({**LLAMA, "hidden_size": 10**12}), SINGLE: b"x"},
            "hidden_size 1000000000000",
        ),
        (
            {"config.json": b" " * (40 << 20), SINGLE: b"x"},
            "config.json is 41.9 MB long, and no such file has more",
        ),
        ({"../../evil.gguf": b"x"}, "would lie outside its directory"),
        (
            {
                "config.json": json.dumps(LLAMA),
                f"{SINGLE}.index.json": json.dumps({"weight_map": {"w": "../../x.safetensors"}}),
            },
            "expected: refused",
        ),
    ],
    ids=["list", "absurd", "large", "path", "index"],
)
def test_a_hostile_repository_is_refused_before_it_is_downloaded(
    server: Hub, tmp_path: Path, source: str, files: Any, why: str
) -> None:
    server.add("org/model", files, kind="models")
    lock = tmp_path / "a" / "b" / "tuner.lock"
    with pytest.raises(DataError, match=why) as caught:
        fetch.lock_model(source, "org/model", None, lock=lock, name="model", layout="auto", say=print)
    one_paragraph(caught.value)
    assert list(tmp_path.rglob("*")) == []
    assert SINGLE not in server.sent


def test_a_models_own_code_is_neither_fetched_nor_run(server: Hub, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w').close()"
    config = {
        **LLAMA,
        "auto_map": {"AutoModelForCausalLM": "modeling_own.Own", "AutoTokenizer": ["org/other--x.Y", None]},
    }
    files: dict[str, bytes | str] = {
        "config.json": json.dumps(config),
        "modeling_own.py": code,
        "__init__.py": code,
        "setup.py": code,
        SINGLE: b"weights",
    }
    server.add("org/model", files, kind="models")
    lock, out = tmp_path / "tuner.lock", tmp_path / "out"
    fetch.lock_model("hub", "org/model", None, lock=lock, name="model", layout="auto", say=print)
    pin = lockfile.find_pin(lock, "model")
    assert pin is not None
    fetch.download_model("hub", "org/model", pin, out, print)
    assert sorted(path.name for path in out.iterdir() if path.is_file()) == ["config.json", SINGLE]
    assert not any(".py" in path for _, path, _ in server.asked)
    assert not mark.exists()
    assert not [name for name in sys.modules if "modeling_own" in name]


@pytest.mark.parametrize(
    "name", ["../../evil.json", "/evil.json", ".parts/evil.json", "evil\0.json", "a/../../evil.json"]
)
def test_a_lock_that_names_files_elsewhere_writes_none(server: Hub, tmp_path: Path, name: str) -> None:
    server.add("org/model", {name: b"x"}, kind="models")
    pin = lockfile.Pin(
        commit=server.repos["models", "org/model"].refs["main"], files={name: lockfile.Pinned(size=1)}
    )
    out = tmp_path / "a" / "out"
    with pytest.raises(DataError, match="would lie outside its directory or be hidden"):
        fetch.download_model("hub", "org/model", pin, out, print)
    assert list(tmp_path.rglob("*.json")) == []


def test_links_of_a_repository_are_never_made(server: Hub, tmp_path: Path) -> None:
    """Git stores a link as a small file that holds where it leads to, and as that it arrives."""
    server.add("org/model", {"config.json": json.dumps(LLAMA), SINGLE: b"/etc/passwd"}, kind="models")
    lock, out = tmp_path / "tuner.lock", tmp_path / "out"
    fetch.lock_model("hub", "org/model", None, lock=lock, name="model", layout="auto", say=print)
    pin = lockfile.find_pin(lock, "model")
    assert pin is not None
    fetch.download_model("hub", "org/model", pin, out, print)
    assert not any(path.is_symlink() for path in out.rglob("*"))
    with pytest.raises(DataError, match="not a safetensors file, or only the beginning of one"):
        read_specs(out / SINGLE)
