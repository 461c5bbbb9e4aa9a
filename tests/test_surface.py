"""What people type, written out: recipes and scripts depend on it, so a change to it is an edit of this
file.
"""

import tuner
from tuner.cli.parse import OPTIONS, SHELLS, SPELLINGS
from tuner.cli.verbs import VERBS
from tuner.config.overrides import GROUPS
from tuner.config.schema import Config
from tuner.config.view import leaves

VERB_FLAGS = {
    "run": {"-m", "--json"},
    "plan": {"-m", "--check", "--json"},
    "preview": {"--ids", "--all", "--json"},
    "status": {"--all", "--sweep", "--json"},
    "list": {"--json"},
    "config": {"--fields"},
    "copy": set(),
    "doctor": set(),
    "help": set(),
    "chat": set(),
    "predict": {"--base", "--logprobs"},
    "serve": set(),
    "compare": {"--json"},
    "stop": set(),
    "convert": set(),
    "merge": set(),
    "evaluate": set(),
    "export": set(),
    "push": {"--public", "--yes"},
    "reproduce": {"--keep", "--json"},
    "rename": set(),
    "clean": {"--dry-run", "--not-started", "--all"},
}
"""verb → its flags"""

FIELDS = {
    "model": (
        "source path package file install run dir adapter repo modelscope revision links layout new_tokens "
        "context licence parameters targets geometry"
    ),
    "model.chat": (
        "special ids begin system system_in system_with_tools user assistant prompt end end_in stops "
        "finish default_system trim tools tools_in tools_gap tool tool_indent tool_join calls calls_in "
        "calls_gap calls_turn calls_end call call_join id_length results result result_join reasoning "
        "reasoning_in no_reasoning no_reasoning_in jinja auto"
    ),
    "algo": (
        "adapter quant r alpha dropout dora rslora lora_init lora_plus targets last_layers freeze neftune "
        "label_smoothing precision epochs steps stop_step schedule_steps init batch_tokens schedule "
        "warmup decay early_stop early_stop_every clip"
    ),
    "algo.optim": "name lr betas eps weight_decay momentum",
    "data": (
        "label source path package repo revision files encoding format columns roles paths split fill "
        "system leave unread take of length overlong loss reasoning bad_rows duplicates held_out "
        "held_out_path max_dropped min_trained_tokens questions answer_tokens seed"
    ),
    "machine": (
        "device gpus processes nodes hostfile launcher timeout engine zero offload offload_path deepspeed "
        "sequence_parallel threads workers row_limit parse_memory parse_timeout micro_batch memory recompute "
        "attention kernels deterministic preflight save_every keep measure_every samples trackers project"
    ),
    "eval": "prompts held_out_rows max_new_tokens",
    "train": "keep",
    "convert": "step best_by",
    "merge": "when layout",
    "generation": "system temperature top_p max_new_tokens seed",
    "predict": "batch endpoint model",
    "serve": "engine python weights port timeout",
    "sweep": "objective",
    "": "seed variant root store lock locked until redo name note tags choices",
}
"""node of the config → its fields; those at the top have none"""


PYTHON = "Run compare convert evaluate export find merge plan predict rename reproduce run status stop"
"""what `import tuner` gives"""


def test_functions_in_python() -> None:
    assert set(tuner.__all__) == set(PYTHON.split())


def test_verbs_and_their_flags() -> None:
    assert {name: set(verb.flags) for name, verb in VERBS.items()} == VERB_FLAGS


def test_options_of_the_command_line() -> None:
    assert set(OPTIONS) == {"--help", "--version", "--quiet", "--verbose", "--config-dir", "--completion"}
    assert SPELLINGS == {
        "-h": "--help",
        "-V": "--version",
        "-q": "--quiet",
        "-v": "--verbose",
        "--multirun": "-m",
        "-cd": "--config-dir",
    }
    assert set(SHELLS) == {"bash", "zsh", "fish"}


def test_groups_of_the_config() -> None:
    assert set(GROUPS) == {"model", "algo", "data", "machine", "eval", "model/chat"}


def test_fields_of_the_config() -> None:
    fields = {f"{node}.{name}".lstrip(".") for node, names in FIELDS.items() for name in names.split()}
    assert {path for path, _, _ in leaves(Config())} == fields
