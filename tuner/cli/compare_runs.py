"""How runs compare, in the terminal and as a page."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tuner.api.comparison import read_comparison
from tuner.errors import StoreError
from tuner.files import write_text
from tuner.pipeline.run import RunDirectory


def compare(runs: Sequence[RunDirectory], root: Path, *, as_json: bool) -> int:
    """Print how the runs compare, and write the page under `root`; with `as_json` only print, for machines.

    Raises ConfigError for runs that can't be compared, StoreError when the page can't be written, after
    everything else was printed.
    """
    comparison = read_comparison(runs)
    if as_json:
        print(json.dumps(comparison, ensure_ascii=False, indent=1))
        return 0
    from tuner.report.comparison_page import to_html
    from tuner.report.comparison_text import to_text

    print(to_text(comparison, shutil.get_terminal_size().columns, colour=sys.stdout.isatty()))
    page = root / "compare" / f"{'-'.join(run.digest for run in runs)}.html"
    try:
        # a name on the disk may hold no text
        write_text(page, to_html(comparison).encode("utf-8", "replace").decode("utf-8"))
    except OSError as error:
        raise StoreError(
            f"The page {page} can't be written: {error.strerror}. Make space, mend its permissions, or "
            "choose another root=DIR."
        ) from error
    print(f"\npage    {page}")
    return 0
