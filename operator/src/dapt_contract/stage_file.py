"""Defines `stage.json`, which tells a pod what to run, and `report.json`, which the run leaves on the work volume."""

import logging
from pathlib import Path

from pydantic import JsonValue, SerializeAsAny, ValidationError, model_validator

from dapt_contract.base import Contract, JsonObject
from dapt_contract.envelope import ContractError, SignatureError, digest_of, read_envelope, write_envelope
from dapt_contract.layout import lineage_folder, report_path, try_number
from dapt_contract.run_identity import RunIdentity
from dapt_contract.stages import KINDS
from dapt_contract.stages.common import CHECKING_FIELDS, FIELDS_ABSENT_IF_NONE, LAYOUT_FIELDS

logger = logging.getLogger(__name__)
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
        """Return the digest of the configuration, as `digest_of_work` gives it."""
        return digest_of_work(self.config)


def digest_of_work(config: Contract) -> str:
    """Return the digest of a configuration; runs with the same digest do the same work and have the same result.

    How the ranks divide the work is no part of it: what one GPU has measured stands when two would measure it now.
    """
    return digest_of(_without(config.model_dump(mode="json"), LAYOUT_FIELDS))


def digest_without_checks(config: Contract) -> str:
    """Return the digest of a configuration without the fields that only check what it reads.

    A run that a version without these fields has created does the same work, and has this digest.
    """
    return digest_of(_without(config.model_dump(mode="json"), CHECKING_FIELDS | LAYOUT_FIELDS))


def _without(value: JsonObject, fields: frozenset[str]) -> JsonObject:
    """Return an object without these fields, also in the objects inside it."""
    return {
        name: _cleaned(field, fields)
        for name, field in value.items()
        if name not in fields and not (field is None and name in FIELDS_ABSENT_IF_NONE)
    }


def _cleaned(value: JsonValue, fields: frozenset[str]) -> JsonValue:
    if isinstance(value, dict):
        return _without(value, fields)
    return [_cleaned(entry, fields) for entry in value] if isinstance(value, list) else value


class StoredReport(Contract):
    """Holds the body of report.json, with the digest of the configuration that it belongs to."""

    kind: str
    config_digest: str
    report: dict[str, object]


def write_report(work: Path, stage: StageFile, report: Contract, *, key: bytes = b"") -> None:
    """Write a run's report, which is the last thing that a stage does; signed where there is a key.

    Raises:
        OSError: the volume is full or read-only.
    """
    body = StoredReport(
        kind=stage.kind, config_digest=stage.config_digest, report=report.model_dump(mode="json")
    )
    path = work / report_path(stage.run)
    write_envelope(path, report_schema(stage.kind), body, run_key=stage.run.key, key=key)


def find_report(
    work: Path, lineage: str, kind: str, config_digest: str | None = None, *, key: bytes = b""
) -> Contract | None:
    """Return the newest finished report in a lineage folder, of any of its runs; None when there is none.

    Args:
        work: root of the work volume.
        lineage: folder relative to it, as `layout.lineage_folder` gives it.
        kind: kind of the stage.
        config_digest: only a report of this configuration; None: any.
        key: that must have signed it: others are logged and passed over. Empty: signatures are not checked.
    """
    numbered = [
        (number, path)
        for path in (work / lineage).glob("try-*/report.json")
        if (number := try_number(path.parent.name)) is not None
    ]
    for _, path in sorted(numbered, reverse=True):
        try:
            _, body = read_envelope(path, report_schema(kind), StoredReport, key=key)
            if config_digest in (None, body.config_digest):
                return KINDS[kind].report.model_validate(body.report)
        except SignatureError as error:
            logger.warning("%s; it is not used", error)
        except (ContractError, ValidationError, OSError):
            continue  # a report that cannot be read was never finished
    return None


def finished_report(work: Path, stage: StageFile, *, key: bytes = b"") -> Contract | None:
    """Return the finished report of the same work, if any: a repeated run sends its facts again and exits 0.

    Of a stage without a key there is none: whoever can write to the work volume could have written it, and prepare's
    report decides which data all later stages believe.
    """
    if not key:
        return None
    return find_report(work, lineage_folder(stage.run), stage.kind, stage.config_digest, key=key)
