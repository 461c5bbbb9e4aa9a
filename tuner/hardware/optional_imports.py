"""What libraries import behind our back, kept from doing so: called before torch, transformers or PEFT is
imported.
"""

import logging
import sys


def block_optional_imports(*, bitsandbytes: bool, deepspeed: bool) -> None:
    """Import bitsandbytes and DeepSpeed only where they are needed, and a hub's kernels never.

    PEFT imports bitsandbytes wherever it is installed, which costs a stage one to two seconds. On some
    CPUs bitsandbytes then loads a compiled kernel of a hub's through the package `kernels`: code that
    nobody asked for. transformers imports DeepSpeed to save a model, and accelerate to wrap one, which takes
    seconds and picks an accelerator for the process.
    """
    # Both ask importlib.util.find_spec, which answers None for a module that is None here: as if it were not
    # installed.
    if not bitsandbytes:
        sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]
    if not deepspeed:
        sys.modules.setdefault("deepspeed", None)  # type: ignore[arg-type]
    sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns that there is no such kernel
