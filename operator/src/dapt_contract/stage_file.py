"""`stage.json`: what the operator tells a pod to do. `report.json`: what the pod leaves on the volume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import SerializeAsAny, ValidationError, model_validator

from dapt_contract.base import Contract
from dapt_contract.envelope import ContractError, digest_of, read_envelope, write_envelope
from dapt_contract.layout import lineage_folder, report_path
from dapt_contract.run_identity import RunIdentity
from dapt_contract.stages import KINDS

STAGE_SCHEMA = "dapt.stage"


def report_schema(kind: str) -> str:
    """The schema name of a kind's report."""
    return f"dapt.report.{kind}"


class StageFile(Contract):
    """One run: who it is, what kind of stage, and its configuration."""

    run: RunIdentity
    kind: str
    config: SerializeAsAny[Contract]

    @model_validator(mode="before")
    @classmethod
    def _config_of_its_kind(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("config"), dict):
            kind = KINDS.get(value.get("kind", ""))
            if kind is None:
                raise ValueError(f"unknown kind of stage {value.get('kind')!r}; known: {', '.join(KINDS)}")
            return value | {"config": kind.config.model_validate(value["config"])}
        return value

    @property
    def config_digest(self) -> str:
        """Equal digests mean equal work: it covers the configuration, not the try."""
        return digest_of(self.config)


class StoredReport(Contract):
    """The body of report.json: the digest says which configuration it answers."""

    kind: str
    config_digest: str
    report: dict[str, Any]


def write_report(work: Path, stage: StageFile, report: Contract) -> None:
    """Write a run's report, the last thing a stage does.

    Raises:
        OSError: the volume is full or read-only.
    """
    body = StoredReport(
        kind=stage.kind, config_digest=stage.config_digest, report=report.model_dump(mode="json")
    )
    write_envelope(work / report_path(stage.run), report_schema(stage.kind), body, run_key=stage.run.key)


def find_report(work: Path, lineage: str, kind: str, config_digest: str | None = None) -> Contract | None:
    """The newest finished report of a lineage folder (as `layout.lineage_folder`), whichever try wrote it.

    Args:
        work: root of the work volume.
        lineage: folder relative to it.
        kind: kind of the stage.
        config_digest: only a report of this configuration; None: any.
    """
    folder = work / lineage
    tries = sorted(folder.glob("try-*/report.json"), key=lambda path: int(path.parent.name[4:]), reverse=True)
    for path in tries:
        try:
            _, body = read_envelope(path, report_schema(kind), StoredReport)
            if config_digest in (None, body.config_digest):
                return KINDS[kind].report.model_validate(body.report)
        except (ContractError, ValidationError):
            continue  # a report that cannot be read was never finished
    return None


def finished_report(work: Path, stage: StageFile) -> Contract | None:
    """A finished report of the same work, so that a repeated run re-emits it and exits 0."""
    return find_report(work, lineage_folder(stage.run), stage.kind, stage.config_digest)
