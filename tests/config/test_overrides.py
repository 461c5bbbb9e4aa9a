"""What a person types arrives as typed."""

from dataclasses import replace
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from tuner.config.compose import compose, group_options
from tuner.config.overrides import quote, split_at_commas, translate
from tuner.config.schema import Config
from tuner.config.validate import validate
from tuner.errors import ConfigError

AWKWARD = [
    "客服/2026(1).jsonl",
    "a b",
    "a=b",
    "[x] #1",
    "~weird",
    "it's",
    'say "hi"',
    "back\\slash",
    "ends in \\",
    "\\'",
    "2024",
    "007",
    "1e3",
    "true",
    "null ",
    "{a: b}",
    "${oc.env:HOME}",
    "$HOME",
    "a,b",
    "*",
    "!",
    "%",
    "-",
    "_",
    "a:b",
    " lead",
    "",
    "(",
    "'",
    "''",
    "a'b'c",
    "\\\\'",
    "\t",
    "é́",
    "🙂",
    "key: [1, {2",
]


@pytest.mark.parametrize("text", AWKWARD)
def test_text_arrives_as_typed(text: str) -> None:
    expected = "" if text == "''" else text
    assert compose([f"note={text}"]).note == expected


@given(
    st.text(
        alphabet=st.characters(
            blacklist_categories=("Cs",), blacklist_characters="\0\r\n\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
        ),
        max_size=40,
    )
)
def test_quote_is_undone_by_the_grammar(text: str) -> None:
    quoted_by_hand = len(text) >= 2 and text[0] == text[-1] and text[0] in "'\""
    if quoted_by_hand or text.startswith("~") or "${" in text:
        return
    value = OverridesParser.create().parse_override(f"note={quote(text)}").value()
    assert str(value) == text


@given(
    st.lists(
        st.text(alphabet="ab客 '\"", min_size=1)
        .map(str.strip)
        .filter(lambda s: s and not set(s) & set("'\"")),
        max_size=5,
    )
)
def test_split_undoes_join(parts: list[str]) -> None:
    assert split_at_commas(",".join(parts)) == parts


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        (r"<think>\n{a}\n</think>\n\n{b}", "<think>\n{a}\n</think>\n\n{b}"),
        (r'"{a}\t{b}\nnext"', "{a}\t{b}\nnext"),
        (r"a\\nb \\t", r"a\nb \t"),
        (r"\nabla \text{x} \theta \times \neq \tfrac12", r"\nabla \text{x} \theta \times \neq \tfrac12"),
        (r"C:\data \x", r"C:\data \x"),
        ("a\nb", "a\nb"),
    ],
)
def test_line_breaks_and_tabs_can_be_typed_in_what_a_model_reads(typed: str, wanted: str) -> None:
    config = compose(
        [f"data.columns.output={typed}", f"data.system={typed}", f"data.fill.x={typed}", f"note={typed}"]
    )
    assert (config.data.columns["output"], config.data.system, config.data.fill["x"]) == (
        wanted,
        wanted,
        wanted,
    )
    assert config.note == (typed[1:-1] if typed[0] == '"' else typed)
    assert compose([r'data.columns={output: "a\nb {x}", input: q}']).data.columns == {
        "output": "a\nb {x}",
        "input": "q",
    }
    assert compose([r"eval.prompts=[One\nTwo?]"]).eval.prompts == ("One\nTwo?",)


def test_lists_numbers_and_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/小金")
    config = compose(
        [
            "data=local",
            "data.path=[a b.jsonl,'c,d.jsonl',客.jsonl]",
            "algo.optim.lr=1e-4",
            "algo.steps=1e3",
            "algo.targets=[q_proj,v_proj]",
            "store=~/s",
            "data.fill.name=小金 (v2)",
        ]
    )
    assert config.data.path == ("a b.jsonl", "c,d.jsonl", "客.jsonl")
    assert (config.algo.optim.lr, config.algo.steps, config.algo.targets) == (
        1e-4,
        1000,
        ("q_proj", "v_proj"),
    )
    assert (config.store, config.data.fill["name"]) == ("/home/小金/s", "小金 (v2)")


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("algo=lorra", "Did you mean lora"),
        ("algo=lora,full", "add -m"),
        ("seed=1,2", "add -m"),
        ("model=./my/model", r"model=local model.path=\./my/model"),
        ("algo.optim.lrr=1", r"Did you mean algo\.optim\.lr"),
        ("lr=1e-4", r"not a field"),
        ("trian.lr=1", r"Here it is algo\.optim\.lr"),
        ("+algo.new=4", "not a field"),
        ("+algo.r=4", "write algo.r=4"),
        ("++algo.nope=4", "not a field"),
        ("~algo.r", "can't be removed"),
        ("algo.optim=3", "is a group of fields"),
        ("algo.optim.lr=abc", "must be a number"),
        ("algo.r=7.5", "must be a whole number"),
        ("algo.r=true", "must be a whole number"),
        ("machine.deterministic=yes please", "true or false"),
        ("algo.precision=fp16", "Did you mean"),
        ("model=local", r"model\.path=DIR"),
        ("algo.batch_tokens=16", "less than one pack"),
        ("data.length=9000", "made for 8192"),
        ("algo.optim.betas=[0.9]", "list"),
        ("data.length=1", "at least 2 tokens"),
        ("data.held_out=1", "less than 1"),
        ("algo.epochs=0", "more than 0"),
        ("algo.steps=-1", "at least 1"),
        ("algo.warmup=1.5", "a whole number of steps"),
        ("machine.micro_batch=0", "at least 1"),
        ("model.file=null", r"needs model\.package"),
        ("note=https://me:secret@host/x", "user name or password"),
    ],
)
def test_refused_in_one_paragraph(word: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        compose([word])
    assert "\n" not in str(caught.value)


def test_contradictions() -> None:
    for words, says in [
        (["algo=full", "algo.dropout=0.1"], "acts on adapters"),
    ]:
        with pytest.raises(ConfigError, match=says):
            compose(words)


@pytest.mark.parametrize("word", ["data.path=rows.jsonl", "model.path=dir"])
def test_a_path_without_local_says_what_is_missing(word: str) -> None:
    with pytest.raises(ConfigError, match=f"Write {word.partition('.')[0]}=local {word}"):
        compose([word])


def test_secrets_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh123")
    with pytest.raises(ConfigError, match="secret from the environment") as caught:
        compose(["note=my hf_abcdefgh123"])
    assert "hf_abcdefgh123" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DB_PASS", "geheimnis1"),
        ("AWS_ACCESS_KEY", "AKIA12345678"),
        ("SERVICE_CREDENTIAL", "wort'mit\\allem"),
        ("WANDB_API_KEY", "/aGk0bGVzcw=="),
        ("SSH_KEYS", "schlüssel-eins"),
    ],
)
def test_secrets_stay_out_by_whatever_name(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="note holds the value of a secret from the environment"):
        validate(replace(Config(), note=f"see {value}"))


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("seed=1180591620717411303424", "seed is 1180591620717411303424, which is more than 64 bits hold"),
        ("machine.threads=100000", "machine.threads is 100000, but must be at least 1 and less than 1025"),
        ("machine.workers=100000", "machine.workers is 100000"),
    ],
)
def test_numbers_that_no_machine_holds(word: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        compose([word])


def test_a_path_is_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path))
    monkeypatch.setenv("MONKEY", "chimpanzee")
    compose([f"note=chimpanzee in {tmp_path}"])


def test_every_option_is_known() -> None:
    found = group_options()
    assert {"smollm2_135m_q4", "local"} <= set(found["model"])
    assert translate(["algo=full"], found, sweep=False) == ["algo=full"]
    assert translate(["algo=lora,full", "note=a b,c"], found, sweep=True) == [
        "algo=lora,full",
        "++note='a b','c'",
    ]
