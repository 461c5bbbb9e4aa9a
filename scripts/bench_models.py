"""How long a model takes from the publisher's layout to the device and back, and how much memory of the host:
scripts/bench models [--size 1.8B|7B|20B].

A random InternLM2 of that shape is written in its own layout; then each step runs in a process of its own,
which tells its seconds and the most memory that was its own while it ran (RssAnon: pages of mapped files,
which the system drops when it needs them, don't count).
"""

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZES = {
    "tiny": {
        "hidden_size": 256,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
    },
    "1.8B": {
        "hidden_size": 2048,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
    },
    "7B": {
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
    },
    "20B": {
        "hidden_size": 6144,
        "num_attention_heads": 48,
        "num_key_value_heads": 8,
        "intermediate_size": 16384,
        "num_hidden_layers": 48,
    },
}
STEPS = ("native", "load", "load-nf4", "adapter", "merge", "merge-nf4", "original")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--size", choices=SIZES, default="tiny")
    options.add_argument("--dir", type=Path, default=Path("bench-models"))
    options.add_argument("--device", default="auto")
    options.add_argument("--steps", default=",".join(STEPS))
    options.add_argument("--step", help=argparse.SUPPRESS)
    wished = options.parse_args()
    if wished.step:
        print(json.dumps(measured(lambda: STEP[wished.step](wished.dir, wished.device))))
        return
    shutil.rmtree(wished.dir, ignore_errors=True)
    wished.dir.mkdir(parents=True)
    began = time.monotonic()
    native = "native" not in wished.steps.split(",")
    size, largest = write_model(
        wished.dir / ("ours" if native else "theirs"), SIZES[wished.size], native=native
    )
    print(
        f"InternLM2 of {wished.size}: {size / 1e9:.2f} GB, largest shard {largest / 1e9:.2f} GB, made in "
        f"{time.monotonic() - began:.0f} s",
        flush=True,
    )
    print(
        "| step | seconds | GB/s | memory of the host, GB | of the device, GB |\n| --- | ---: | ---: | ---: "
        "| ---: |",
        flush=True,
    )
    for step in wished.steps.split(","):
        command = [
            sys.executable,
            __file__,
            "--dir",
            str(wished.dir),
            "--device",
            wished.device,
            "--step",
            step,
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        told = json.loads(done.stdout.splitlines()[-1])
        print(
            f"| {step} | {told['seconds']:.1f} | {size / 1e9 / told['seconds']:.2f} | {told['host']:.2f} | "
            f"{told['device']:.2f} |",
            flush=True,
        )


def write_model(out: Path, sizes: dict[str, int], *, native: bool) -> tuple[int, int]:
    """A checkpoint of random bf16 weights, in InternLM2's layout or in Llama's; returns its bytes and
    those of its largest shard.
    """
    import torch

    from tuner.models.checkpoint.safetensors import Spec
    from tuner.models.checkpoint.write_safetensors import write_checkpoint

    vocab, hidden, ffn = 92544, sizes["hidden_size"], sizes["intermediate_size"]
    head, kv = hidden // sizes["num_attention_heads"], sizes["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.norm.weight": (hidden,)}
    shapes |= dict.fromkeys(
        ("model.embed_tokens.weight", "lm_head.weight")
        if native
        else ("model.tok_embeddings.weight", "output.weight"),
        (vocab, hidden),
    )
    for layer in range(sizes["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        if native:
            shapes |= {f"{name}.self_attn.{part}_proj.weight": (hidden, hidden) for part in "qo"}
            shapes |= {f"{name}.self_attn.{part}_proj.weight": (kv * head, hidden) for part in "kv"}
        else:
            shapes |= {
                f"{name}.attention.wqkv.weight": (hidden + 2 * kv * head, hidden),
                f"{name}.attention.wo.weight": (hidden, hidden),
            }
        gate, up, down = (
            (f"mlp.{part}_proj" for part in ("gate", "up", "down"))
            if native
            else (f"feed_forward.{part}" for part in ("w1", "w3", "w2"))
        )
        shapes |= {
            f"{name}.{gate}.weight": (ffn, hidden),
            f"{name}.{up}.weight": (ffn, hidden),
            f"{name}.{down}.weight": (hidden, ffn),
        }
        norms = ("input_layernorm", "post_attention_layernorm") if native else ("attention_norm", "ffn_norm")
        shapes |= {f"{name}.{norm}.weight": (hidden,) for norm in norms}
    specs = {name: Spec(name=name, dtype="BF16", shape=shape) for name, shape in shapes.items()}
    pool = (torch.randn(1 << 24, generator=torch.Generator().manual_seed(0)) * 0.02).to(torch.bfloat16)

    def value(name: str) -> Any:
        spec = specs[name]
        many = pool.repeat(-(-spec.count // len(pool)))[: spec.count]
        return many.view(spec.shape) if len(spec.shape) > 1 else torch.ones(spec.shape, dtype=torch.bfloat16)

    out.mkdir()
    kind = (
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
        if native
        else {"model_type": "internlm2", "architectures": ["InternLM2ForCausalLM"]}
    )
    config = (
        sizes
        | kind
        | {
            "vocab_size": vocab,
            "bias": False,
            "rope_theta": 1000000,
            "rope_scaling": None,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
            "torch_dtype": "bfloat16",
        }
    )
    (out / "config.json").write_text(json.dumps(config), encoding="utf-8")
    files = write_checkpoint(out, specs.values(), value)
    bytes_of = [(out / name).stat().st_size for name in files if name.endswith(".safetensors")]
    return sum(bytes_of), max(bytes_of)


def measured(step: Callable[[], None]) -> dict[str, float]:
    """Seconds, and the most memory of the host and of the device, in GB, above what the process had
    before.
    """
    import torch

    import tuner.models.load  # so that imports are not counted

    del tuner
    before, highest, done = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            highest[0] = max(highest[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.monotonic()
    step()
    seconds = time.monotonic() - began
    done.set()
    watcher.join()
    device = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
    return {"seconds": seconds, "host": max(0, highest[0] - before) / 1e9, "device": device / 1e9}


def anonymous() -> int:
    """Bytes of this process that belong to no file."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def native(home: Path, _device: str) -> None:
    from tuner.models.checkpoint.files import checkpoint_files
    from tuner.models.layouts.rewrite import write_native

    (home / "ours").mkdir()
    write_native(checkpoint_files(home / "theirs"), "internlm2", home / "ours", say=lambda _: None)


def load(home: Path, device: str, quant: str = "none") -> None:
    import torch

    from tuner.models.load import load_model, resolve_device

    load_model(home / "ours", dtype=torch.bfloat16, device=resolve_device(device), quant=quant)
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def adapter(home: Path, _device: str) -> None:
    """A LoRA of rank 16 on all linear layers, as training leaves it."""
    import torch

    from tuner.models.checkpoint.files import weight_files
    from tuner.models.checkpoint.safetensors import Checkpoint, Spec
    from tuner.models.checkpoint.write_safetensors import write_file
    from tuner.models.layouts.llama import HEAD

    (home / "adapter").mkdir()
    specs = {}
    for spec in Checkpoint(weight_files(home / "ours")).specs.values():
        if len(spec.shape) == 2 and spec.name != HEAD and "embed" not in spec.name:
            stem = f"base_model.model.{spec.name.removesuffix('.weight')}"
            for name, shape in (("A", (16, spec.shape[1])), ("B", (spec.shape[0], 16))):
                full = f"{stem}.lora_{name}.weight"
                specs[full] = Spec(name=full, dtype="F32", shape=shape)
    write_file(
        home / "adapter" / "adapter_model.safetensors",
        specs.values(),
        lambda name: torch.full(specs[name].shape, 1e-3),
    )
    (home / "adapter" / "adapter_config.json").write_text(
        json.dumps({"r": 16, "lora_alpha": 32}), encoding="utf-8"
    )


def merge(home: Path, _device: str, quant: str = "none") -> None:
    from tuner.models.lora.merge import merge_adapter

    out = home / f"merged-{quant}"
    out.mkdir()
    merge_adapter(home / "ours", home / "adapter", out, quant=quant)
    shutil.rmtree(out)


def original(home: Path, _device: str) -> None:
    from tuner.models.layouts.detection import ORIGINAL
    from tuner.models.lora.merge import merge_original

    out = home / "back"
    out.mkdir()
    merge_original(home / "ours", home / "adapter", home / "ours" / ORIGINAL, out)
    shutil.rmtree(out)


STEP: dict[str, Callable[[Path, str], None]] = {
    "native": native,
    "load": load,
    "load-nf4": lambda home, device: load(home, device, "nf4"),
    "adapter": adapter,
    "merge": merge,
    "merge-nf4": lambda home, device: merge(home, device, "nf4"),
    "original": original,
}


if __name__ == "__main__":
    main()
