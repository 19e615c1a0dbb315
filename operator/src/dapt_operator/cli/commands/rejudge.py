"""`dapt rejudge` applies the gates of a manifest to a run's recorded numbers, and changes nothing."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dapt_client.documents import read_documents
from dapt_operator.api.v1alpha1.profile import LOCAL_PROFILE_NAME
from dapt_operator.api.v1alpha1.status import DomainAdaptationStatus
from dapt_operator.cli.errors import UserError
from dapt_operator.cli.inputs.manifests import read_request
from dapt_operator.cli.run_folder import find_run
from dapt_operator.plan.gates.verdict import WITHIN_NOISE
from dapt_operator.plan.ledger.stage_facts import read_facts
from dapt_operator.plan.selection.rejudge import Rejudgement, rejudge

DECISIONS = {
    "Selected": "would be selected: {candidate}, {reason}",
    "NeedsMeasure": "not decided: {reason}",
    "Breached": "would be blocked: {reason}",
    "RolledBack": "would be rolled back: {reason}",
}


def rejudge_run(run: str, manifest: Path, runs: Path) -> RenderableType:
    """Return the candidates of a local run with their verdicts, and the decision, by the gates of `manifest`.

    Args:
        run: a local run's name or folder, or a file with the resource as `kubectl get da NAME -o yaml` writes it.
        manifest: as for `rejudged`.
        runs: folder of local runs.

    Raises:
        UserError: a file is wrong, or the run has not measured its base model yet.
    """
    return rejudged(run, _status(run, runs), manifest)


def rejudged(
    run: str, status: DomainAdaptationStatus, manifest: Path, *, local: bool = True
) -> RenderableType:
    """Return the candidates with their verdicts, and the decision, by the gates and the selection of `manifest`.

    Args:
        run: shown in messages.
        status: has the recorded numbers.
        manifest: its gates and selection apply; the run's own, or an edited one to see what would change.
        local: whether the manifest is one for this machine.

    Raises:
        UserError: a file is wrong, or the run has not measured its base model yet.
    """
    spec = read_request(manifest, LOCAL_PROFILE_NAME, local=local).adaptation.spec
    if status.ledger is not None and status.ledger.has_tables_only:
        raise UserError(
            f"{run}: has finished, and its status keeps the tables alone; judge a copy of the resource that was saved"
            " before it finished, or a local run"
        )
    facts = read_facts(status.ledger) if status.ledger is not None else None
    if facts is None or facts.prepare is None or facts.base is None:
        raise UserError(
            f"{run}: nothing to judge yet, the base model is not measured; try again after the stage baseline"
        )
    return _page(rejudge(spec, facts, datetime.now(UTC)))


def _status(run: str, runs: Path) -> DomainAdaptationStatus:
    if not Path(run).is_file():
        return find_run(run, runs).status()
    data = read_documents(Path(run))[0].data
    stored = data.get("status") if isinstance(data, dict) else None
    if not isinstance(stored, dict):
        raise UserError(
            f"{run}: has no status; write the file with `kubectl get domainadaptation NAME -o yaml`,"
            " or name a local run"
        )
    try:
        return DomainAdaptationStatus.model_validate(stored)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{run}: status.{place}: {first['msg']}; get it from the cluster again") from None


def _page(rejudgement: Rejudgement) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("candidate", "gain on A", "limit on A", "gates on B"):
        table.add_column(heading, justify="right" if heading == "gain on A" else "left")
    for candidate in rejudgement.candidates:
        failed = [verdict.message for verdict in candidate.verdicts if not verdict.passed]
        noise = [verdict.message for verdict in candidate.verdicts if verdict.reason == WITHIN_NOISE]
        table.add_row(
            candidate.id,
            f"{candidate.gain_on_a:.3f}",
            "pass" if candidate.passes_on_a else "over",
            "; ".join(failed or noise) or ("pass" if candidate.is_judged else "–"),
        )
    stops = [
        f"attempt {number}: the stop rule fires at reading {index + 1}: {decision.message}"
        for number, decisions in rejudgement.stops
        for index, decision in enumerate(decisions)
        if decision.verdict != "Continue"
        and all(before.verdict == "Continue" for before in decisions[:index])
    ]
    decision = DECISIONS[rejudgement.decision].format(
        candidate=rejudgement.candidate, reason=rejudgement.reason
    )
    return Group(table, Text(), *(Text(line) for line in stops), Text(decision))
