"""Defines what rank 0 answers at `/progress`. No decision depends on it, so a lost reading does no harm.

Its floats may be infinite or no number: that is how a diverging training looks, and the reading must arrive all the
same.
"""

from typing import Annotated

from pydantic import AfterValidator, Field

from dapt_contract.base import MAX_CHECKPOINTS, Contract, Count, DigestText, ShortText
from dapt_contract.pod.preflight import PreflightReading
from dapt_contract.stages.pretrain import CheckpointFacts
from dapt_contract.untrusted.printable import printable


class Progress(Contract):
    """Holds one live reading of a running stage."""

    run_key: DigestText
    stage: Annotated[ShortText, AfterValidator(printable)]
    activity: Annotated[str, AfterValidator(printable)] = Field(default="", max_length=200)
    """What the stage is doing, in a few words: `tokenizing domain[0]`, `training`, `base: general held-out text`."""
    fraction: float = Field(default=0.0, ge=0.0, le=1.0)
    step: Count | None = None
    total_steps: Count | None = None
    tokens: Count | None = None
    tokens_per_second: float | None = None
    loss_nats: float | None = None
    learning_rate: float | None = None
    gradient_norm: float | None = None
    domain_perplexity: float | None = None
    general_perplexity: float | None = None
    checkpoints: tuple[CheckpointFacts, ...] = Field(default=(), max_length=MAX_CHECKPOINTS)
    """Checkpoints that are complete and measured so far: their evaluations may start in parallel with the training."""
    skipped_steps: Count | None = None
    """Steps so far that changed no weight, because loss or gradient was not a number."""
    loss_spikes: Count | None = None
    """How often the loss rose far over those before it."""
    eta_seconds: float | None = None
    """Time left in this stage, as the stage estimates it."""
    slow_rank: Annotated[str, AfterValidator(printable)] = Field(default="", max_length=300)
    """The rank that its peers wait for, with its node and by how much; empty where there is none."""
    preflight: PreflightReading | None = None
    """What the ranks measured before they loaded the model; None before that, and in stages without a preflight."""
