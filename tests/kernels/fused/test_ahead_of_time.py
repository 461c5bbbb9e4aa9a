"""Each kernel compiles for each GPU that is supported, within the shared memory of the smallest."""

import json
import os
import subprocess
import sys

from tests.conftest import REPO

SMALLEST = 99 << 10
"""bytes that a program may have on compute capability 8.6, 8.9 and 12.0"""


def test_kernels_fit_every_gpu() -> None:
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.fused.ahead_of_time"],
        cwd=REPO,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 6 * (6 * 2 + 2)
    assert {name: size for name, size in found.items() if size > SMALLEST} == {}
    assert max(found.values()) > 16 << 10  # it is measured
