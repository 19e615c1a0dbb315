"""Where an accelerator is, DeepSpeed uses it here; everywhere else the tests' settings keep it on the CPU."""

from __future__ import annotations

import os
from importlib.util import find_spec

if find_spec("torch") is not None and not os.environ.get("DAPT_ACCELERATOR"):
    import torch

    if torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cuda"
