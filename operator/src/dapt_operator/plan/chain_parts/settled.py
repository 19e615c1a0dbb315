"""What is settled at each point of the chain: values that exist once the stages before a state have finished.

A state of the chain takes the value that it relies on as an argument, so it cannot be assessed before that exists.
`StageInputs` is the first of them, after prepare.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from dapt_contract.measure import Measure
from dapt_contract.stages.prepare import PrepareFacts
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.v1alpha1.stored.ledger import Ledger
from dapt_operator.plan.selection.candidates import Candidate
from dapt_operator.plan.selection.choose import Selected
from dapt_operator.plan.stage_parts.stage_plan import StageInputs
from dapt_operator.plan.stages.pretrain import PretrainingPlan
from dapt_operator.plan.stages.tuning_data import tuning_data, tuning_data_configs
from dapt_operator.remembered import remembered

_CACHED_LEDGERS: Final = 16

Value = TypeVar("Value")


class MissingFactsError(Exception):
    """The ledger has a finished stage without facts that this version of the operator can read."""


@dataclass(frozen=True)
class Measured(StageInputs):
    """What every state after baseline relies on."""

    base: Measure


@dataclass(frozen=True)
class Chosen(Measured):
    """What every state after selection relies on."""

    numbers: PretrainingPlan
    """Numbers of the newest attempt."""
    selected: Selected

    @property
    def candidate(self) -> Candidate:
        """Candidate that was chosen."""
        return self.selected.candidate


# Both are the same objects from one reconcile to the next while the ledger is, and so is what is planned from them.
@remembered(_CACHED_LEDGERS)
def stage_inputs(
    spec: DomainAdaptationSpec,
    profile: AdaptationProfileSpec,
    contents: Mapping[str, str],
    ledger: Ledger,
    prepared: PrepareFacts,
) -> StageInputs:
    """Return what every state after prepare relies on.

    Args:
        spec: the desired spec.
        profile: its profile.
        contents: digest of the files of a source, for sources on the machine that plans.
        ledger: with what was read of tuning data since.
        prepared: what prepare has reported.
    """
    read = {
        config.kind: tuning_data(config, ledger, prepared) for config in tuning_data_configs(spec, contents)
    }
    return StageInputs(spec, profile, prepared, **read)


@remembered(_CACHED_LEDGERS)
def measured(inputs: StageInputs, base: Measure) -> Measured:
    """Return what every state after baseline relies on."""
    return Measured(**vars(inputs), base=base)


def known(value: Value | None, stage: str) -> Value:
    """Return what a finished stage has settled.

    Raises:
        MissingFactsError: the ledger does not hold it.
    """
    if value is None:
        raise MissingFactsError(f"{stage} has finished, and the ledger holds no readable facts of it")
    return value
