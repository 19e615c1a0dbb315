"""Tests what the operator's process loads: heavy libraries that it does not need stay out of its memory."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("matplotlib", "numpy", "kubernetes", "requests", "torch", "transformers")


def test_operator_process_imports_no_heavy_library() -> None:
    program = (
        "import sys\n"
        "import dapt_operator.cli.app, dapt_operator.cli.commands.operator\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
