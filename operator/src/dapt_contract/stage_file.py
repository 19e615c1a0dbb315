"""Defines `stage.json`, which tells a pod what to run, and `report.json`, which the run leaves on the work volume."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import SerializeAsAny, ValidationError, model_validator

from dapt_contract.base import Contract
from dapt_contract.envelope import ContractError, digest_of, read_envelope, write_envelope
from dapt_contract.layout import lineage_folder, report_path
from dapt_contract.run_identity import RunIdentity
from dapt_contract.stages import KINDS

STAGE_SCHEMA = "dapt.stage"


def report_schema(kind: str) -> str:
    """Return the schema name of the report of a kind of stage."""
    return f"dapt.report.{kind}"


class StageFile(Contract):
    """Describes one run: its identity, its kind of stage and its configuration."""

    run: RunIdentity
    kind: str
    config: SerializeAsAny[Contract]

    @model_validator(mode="before")
    @classmethod
    def _config_of_its_kind(cls, value: object) -> object:
        if isinstance(value, dict) and isinstance(value.get("config"), dict):
            kind = KINDS.get(value.get("kind", ""))
            if kind is None:
                raise ValueError(f"unknown kind of stage {value.get('kind')!r}; known: {', '.join(KINDS)}")
            return value | {"config": kind.config.model_validate(value["config"])}
        return value

    @property
    def config_digest(self) -> str:
        """Return the digest of the configuration; runs of the same configuration do the same work."""
        return digest_of(self.config)


_RUN_FOLDER = re.compile(r"try-[0-9]{1,9}")


class StoredReport(Contract):
    """Holds the body of report.json, with the digest of the configuration that it belongs to."""

    kind: str
    config_digest: str
    report: dict[str, object]


def write_report(work: Path, stage: StageFile, report: Contract) -> None:
    """Write a run's report, which is the last thing that a stage does.

    Raises:
        OSError: the volume is full or read-only.
    """
    body = StoredReport(
        kind=stage.kind, config_digest=stage.config_digest, report=report.model_dump(mode="json")
    )
    write_envelope(work / report_path(stage.run), report_schema(stage.kind), body, run_key=stage.run.key)


def find_report(work: Path, lineage: str, kind: str, config_digest: str | None = None) -> Contract | None:
    """Return the newest finished report in a lineage folder, of any of its runs; None when there is none.

    Args:
        work: root of the work volume.
        lineage: folder relative to it, as `layout.lineage_folder` gives it.
        kind: kind of the stage.
        config_digest: only a report of this configuration; None: any.
    """
    folder = work / lineage
    # Only folders that a run has made: a work volume may hold others.
    found = [path for path in folder.glob("try-*/report.json") if _RUN_FOLDER.fullmatch(path.parent.name)]
    for path in sorted(found, key=lambda path: int(path.parent.name[4:]), reverse=True):
        try:
            _, body = read_envelope(path, report_schema(kind), StoredReport)
            if config_digest in (None, body.config_digest):
                return KINDS[kind].report.model_validate(body.report)
        except (ContractError, ValidationError):
            continue  # a report that cannot be read was never finished
    return None


def finished_report(work: Path, stage: StageFile) -> Contract | None:
    """Return the finished report of the same work, if any: a repeated run sends its facts again and exits 0."""
    return find_report(work, lineage_folder(stage.run), stage.kind, stage.config_digest)
