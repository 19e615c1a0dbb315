"""Objects of ours that are gone are made again: what live runs use, and the stage file that a pod still has to read.

No watch reports them: Secrets of a whole cluster cannot be watched without the right to read them all, and the others
are not worth the memory. So what a run needs is applied before it starts, when its pods report that it is missing, and,
where that is no write, from time to time while it lives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from dapt_contract.envelope import digest_of
from dapt_operator.api.names import signing_secret_name
from dapt_operator.api.v1alpha1.events import RECREATED, WARNING
from dapt_operator.api.v1alpha1.stored.ledger import Ledger
from dapt_operator.launchers.launcher import Launcher
from dapt_operator.launchers.render.objects import stage_config_map
from dapt_operator.plan.chain import Chain
from dapt_operator.plan.chain_parts.assess import ChainInputs
from dapt_operator.plan.chain_parts.position import Position
from dapt_operator.plan.cleanup import CLAIM_KIND
from dapt_operator.plan.desired import left_before, note_of_live_run
from dapt_operator.plan.observed import DesiredState, Observed
from dapt_operator.plan.sizing.resolve import pretrain_layout
from dapt_operator.plan.stage_parts.stage_plan import StagePlan
from dapt_operator.plan.status.events import Notice
from dapt_operator.stage_run import Manifest, RunState, StageRun, plain

CONSEQUENCES: Final = {
    "Secret": (
        " with another key: checkpoints that were signed with the old one are refused, so a training stage that has to"
        " run again begins from its start; put the old Secret back before that to keep them"
    ),
    CLAIM_KIND: ", empty: what earlier stages have written is lost, and a stage that reads it fails",
}
"""What the new object does not have of the old one, by kind."""


@dataclass(frozen=True)
class SharedObjects:
    """Objects that all runs of an adaptation share, as the largest of its runs needs them."""

    manifests: tuple[Manifest, ...]
    digest: str


@dataclass(frozen=True)
class UsedObjects:
    """What live runs use and may have lost."""

    manifests: tuple[Manifest, ...] = ()
    needs_signing_secret: bool = False


def shared_objects(
    observed: Observed, inputs: ChainInputs, position: Position, launcher: Launcher
) -> SharedObjects:
    """Return the objects that all runs share."""
    stages = (stage for assessment in position.assessments if (stage := assessment.stage) is not None)
    num_nodes = max(
        pretrain_layout(inputs.spec, inputs.profile).nodes, *(s.connected_nodes for s in stages), 1
    )
    manifests = launcher.shared(inputs.profile, observed.owner, num_nodes)
    return SharedObjects(manifests, digest_of({"shared": plain(manifests)}))


def used_by_live_runs(
    observed: Observed, inputs: ChainInputs, position: Position, launcher: Launcher
) -> UsedObjects:
    """Return what must exist for the runs that continue: what their pods miss, and now and then what they may miss."""
    live = [run for run in observed.live if run.stage_key in position.kept and not run.is_deleting]
    missed = " ".join(run.reasons_to_wait for run in live)
    if not live or observed.obstacle is not None or not (missed or observed.is_check_due):
        return UsedObjects()
    owner = observed.owner
    # Whether a Secret exists can only be found out by creating it, so that it is not tried for pods that run.
    needs_signing_secret = not observed.is_signing_key_lost and secret_of(observed) in missed
    # After an edit of the profile the next run brings the new objects; a live run keeps those that it began with.
    if inputs.ledger.shared != shared_objects(observed, inputs, position, launcher).digest:
        return UsedObjects((), needs_signing_secret)
    keys = {run.stage_key for run in live}
    stages = (stage for assessment in position.assessments if (stage := assessment.stage) is not None)
    num_nodes = max((stage.connected_nodes for stage in stages if stage.stage_key in keys), default=1)
    shared = launcher.shared(inputs.profile, owner, num_nodes)
    if not observed.is_check_due:
        shared = tuple(manifest for manifest in shared if manifest["metadata"]["name"] in missed)
    return UsedObjects(shared, needs_signing_secret)


def secret_of(observed: Observed) -> str:
    """Return the name of the signing Secret."""
    return signing_secret_name(observed.owner.name, observed.owner.uid)


def lost_stage_files(observed: Observed, desired: DesiredState, ledger: Ledger) -> Mapping[str, Manifest]:
    """Return the ConfigMaps that pods wait for and that can be made again word for word, by name.

    The pods know the digest of their stage file. One that another spec or profile would give does not have it, and
    the run is replaced instead.

    Args:
        observed: of this reconcile.
        desired: spec and profile as they are now.
        ledger: with everything that the runs report.
    """
    lost = [run for run in observed.live if run.is_stage_file_lost and not run.is_deleting]
    if not lost or desired.spec.suspend or observed.obstacle is not None:
        return {}
    inputs = ChainInputs.of(observed, desired, ledger, left_before(observed, desired, ledger, lost[0]))
    found: dict[str, Manifest] = {}
    position = Chain(inputs).position()
    for assessment in position.assessments:
        stage, record = assessment.stage, assessment.record
        if stage is None or record is None or record.profile_digest != desired.profile_digest:
            continue
        for run in lost:
            if record.is_open and record.is_about(run.identity):
                manifest, sha256 = stage_config_map(
                    _run_of(run, position.as_it_runs(stage, ledger)), desired.profile, observed.owner
                )
                if sha256 == run.stage_file_sha256:
                    found[run.object_name] = manifest
    return found


def with_key_notes(ledger: Ledger, observed: Observed, position: Position) -> Ledger:
    """Return the ledger with a note on every live run that cannot resume from its predecessors any more."""
    if not observed.has_new_signing_key:
        return ledger
    for assessment in position.assessments:
        record = assessment.record
        if record is not None and record.is_open:
            note = note_of_live_run(observed, assessment.stage, record)
            ledger = ledger.with_record(record.with_message(note))
    return ledger


def recreation_notices(observed: Observed) -> tuple[Notice, ...]:
    """Return an Event for each object that this reconcile has created again."""
    return tuple(
        Notice(WARNING, RECREATED, f"{name} was gone and is created again{_consequence(name)}")
        for name in observed.recreated
    )


def _consequence(name: str) -> str:
    return CONSEQUENCES.get(name.partition("/")[0], "")


def _run_of(run: RunState, stage: StagePlan) -> StageRun:
    """Return the run as it was created, as far as its stage file depends on it."""
    return StageRun(run.identity, stage.kind, stage.config, stage.resources)
