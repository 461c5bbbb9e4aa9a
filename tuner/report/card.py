"""The model card of a published result (README.md with a head that hubs read): what it is, how it came about,
what was measured. No rows, no paths, no names of machines.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import yaml

LICENCES = ("apache-2.0", "mit", "llama2", "llama3", "llama3.1", "llama3.2", "gemma", "bigcode-openrail-m")
"""that hubs know by these words; others are `other`"""


@dataclass(frozen=True, kw_only=True, slots=True)
class CardFacts:
    """What a card tells of."""

    name: str
    """of the repository"""
    adapter: bool
    """whether it is an adapter, or the whole model"""
    lora: Mapping[str, Any] | None
    """the settings of the adapter that was trained, in PEFT's words; None where all weights were"""
    base: str
    """the model that was trained on"""
    public_base: bool
    """whether `base` is a repository of a hub"""
    tokenize: Mapping[str, Any]
    train: Mapping[str, Any]
    evaluate: Mapping[str, Any]
    """facts of these stages; of a stage that was not run none"""
    versions: Mapping[str, str]
    """library → version"""


def model_card(config: Any, facts: CardFacts) -> str:
    """Markdown with its head, of a run's config (a tuner.config.schema.Config)."""
    head = yaml.safe_dump(_head(config, facts), sort_keys=False, allow_unicode=True)
    title = facts.name.rpartition("/")[2]
    what = "A LoRA adapter" if facts.adapter else "A model"
    about = f"{what}, fine-tuned from {facts.base} with tuner."
    rows = "\n".join(f"| {name} | {value} |" for name, value in _rows(config, facts))
    return (
        f"---\n{head}---\n\n# {title}\n\n{about}\n\n| | |\n| --- | --- |\n{rows}\n\n"
        f"## Use\n\n```python\n{_use(facts)}```\n"
    )


def _head(config: Any, facts: CardFacts) -> dict[str, Any]:
    head: dict[str, Any] = {
        "library_name": "peft" if facts.adapter else "transformers",
        "pipeline_tag": "text-generation",
    }
    if facts.public_base:
        head |= {
            "base_model": facts.base,
            "base_model_relation": "adapter" if facts.adapter else "finetune",
        }
    if repos := [source.repo for source in _sources(config) if source.repo]:
        head["datasets"] = repos
    if licence := config.model.licence:
        word = licence.partition(" ")[0].lower()
        head["license"] = word if word in LICENCES else "other"
    return head | {"tags": ["tuner", "sft", *(["lora"] if config.algo.uses_adapter else [])]}


def _rows(config: Any, facts: CardFacts) -> list[tuple[str, str]]:
    algo, train, tokens = config.algo, facts.train, facts.tokenize
    lora = facts.lora
    adapter = f"LoRA, rank {lora['r']}, alpha {lora['lora_alpha']:g}" if lora else "all weights"
    base = {"none": "", "nf4": ", base in 4 bits (NF4)", "int8": ", base in 8 bits"}[algo.quant]
    rows = [
        ("data", ", ".join(map(_called, _sources(config)))),
        ("trained", f"{adapter}{base}"),
        ("optimizer", f"{algo.optim.name}, learning rate {algo.optim.lr:g}, {algo.schedule}"),
    ]
    if train:
        packs = f"{train['packs_per_step']:,} packs of up to {config.data.length:,} tokens"
        rows.append(("steps", f"{train['step']:,} of {packs}; seed {config.seed}"))
    if tokens:
        rows.append(("tokens of the data", f"{tokens['tokens']:,}, {tokens['trained_tokens']:,} trained"))
    if facts.evaluate:
        base_loss, loss, count = (facts.evaluate.get(key) for key in ("base_loss", "loss", "tokens"))
        if loss is not None and base_loss is not None:
            rows.append(("held-out loss", f"{base_loss:.4f} → {loss:.4f} over {count:,} tokens"))
    if config.model.licence:
        rows.append(("licence of the base", config.model.licence))
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    return [*rows, ("made with", versions)]


def _sources(config: Any) -> Sequence[Any]:
    return config.data.parts or (config.data,)


def _called(source: Any) -> str:
    """A source as others know it: its repository, or the names of its files."""
    if source.repo:
        return f"[{source.repo}](https://huggingface.co/datasets/{source.repo})"
    paths = (source.path,) if isinstance(source.path, str) else source.path or ()
    return ", ".join(PurePath(path).name for path in paths) or source.label or "not told"


def _use(facts: CardFacts) -> str:
    if not facts.adapter:
        return (
            "from transformers import pipeline\n\n"
            f'ask = pipeline("text-generation", model="{facts.name}")\n'
            'print(ask([{"role": "user", "content": "Hello"}])[0]["generated_text"][-1]["content"])\n'
        )
    return (
        "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer\n\n"
        f'model = AutoPeftModelForCausalLM.from_pretrained("{facts.name}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{facts.name}")\n'
        'asked = [{"role": "user", "content": "Hello"}]\n'
        "ids = tokenizer.apply_chat_template(\n"
        '    asked, add_generation_prompt=True, return_tensors="pt", return_dict=True\n)\n'
        "print(tokenizer.decode(model.generate(**ids, max_new_tokens=64)[0]))\n"
    )
