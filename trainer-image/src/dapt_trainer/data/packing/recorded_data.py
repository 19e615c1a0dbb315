"""Compares prepared data with what prepare reported of it: the list of its files, and the content of its shards.

The configuration of a stage carries the digest that prepare reported. It covers `data/manifest.json`, which lists the
files, and each file is compared with the list by what opens it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dapt_contract.envelope import digest_of
from dapt_contract.layout import DATA, HELD_OUT, TUNING_RECORDS
from dapt_contract.stages.tuning_data import data_folder
from dapt_trainer.data.packing.data_manifest import (
    MANIFEST,
    MANIFEST_DIGEST_PREFIX,
    DataManifest,
    manifest_digest,
    read_manifest_and_body,
)
from dapt_trainer.data.packing.prepared_files import digests_of_files, is_as_prepared
from dapt_trainer.digests import DIGEST_DIGITS, changed_file, sha256_of_file
from dapt_trainer.errors import InputError


def content_digest(work: Path, manifest: DataManifest) -> str:
    """Return the `data_digest` of a version before `manifest_digest`: of the files that a manifest lists.

    What a manifest from before it listed them all leaves out is read: its own word for the digest counts for nothing,
    since whoever can write a manifest can leave the list out.
    """
    files = dict(manifest.files) or digests_of_files(work)
    for facts in manifest.report.facts.tuning_data:
        path = f"{data_folder(facts.kind, facts.config_digest)}/{TUNING_RECORDS}"
        if facts.data_digest or (work / path).is_file():
            files[path] = facts.data_digest or sha256_of_file(work / path)
    for shard in manifest.shards:
        files |= {f"{DATA}/{shard.name}/{file.name}": file.sha256 for file in shard.files}
    return digest_of({"sequence_length_tokens": manifest.sequence_length_tokens, "files": files})


def require_recorded_data(work: Path, expected: str | None) -> DataManifest | None:
    """Refuse prepared data that is not what prepare reported: then its manifest was written by somebody else.

    Returns the manifest that was compared; None where nothing is known.

    Args:
        work: root of the work volume.
        expected: digest that prepare reported; None: not known.

    Raises:
        InputError: the manifest is missing, lists other files or says something else of them.
    """
    if expected is None:
        return None
    manifest, found = _read_with_digest(work, expected)
    if found != expected:
        raise InputError(
            f"{work / DATA / MANIFEST}: lists data with the digest {_shown(found)}, and {_shown(expected)} is what "
            "prepare reported: the work volume changed since, so the data is not used; restore it, or create a new "
            "DomainAdaptation, which prepares it again"
        )
    return manifest


def read_recorded_data(work: Path, expected: str | None) -> DataManifest:
    """Return the manifest on the work volume, read once and compared where prepare's digest is known.

    Args:
        work: root of the work volume.
        expected: digest that prepare reported; None: not known.

    Raises:
        InputError: as `require_recorded_data`.
    """
    return require_recorded_data(work, expected) or read_manifest_and_body(work)[0]


def is_as_reported(work: Path, finished: DataManifest, expected: str) -> bool:
    """Return whether the manifest on the work volume is the one that prepare reported.

    Args:
        work: root of the work volume.
        finished: manifest there.
        expected: digest that prepare reported.
    """
    own = finished.report.facts.data_digest
    return expected == own and _read_with_digest(work, own)[1] == own


def _read_with_digest(work: Path, expected: str) -> tuple[DataManifest, str]:
    """Return the manifest on the work volume, and its digest by the rule that an expected one was made by."""
    manifest, body = read_manifest_and_body(work)
    is_of_manifest = expected.startswith(MANIFEST_DIGEST_PREFIX)
    return manifest, manifest_digest(body) if is_of_manifest else content_digest(work, manifest)


def _shown(digest: str) -> str:
    return digest.rpartition(":")[2][:DIGEST_DIGITS]


def is_same_corpus(work: Path, manifest: DataManifest, beat: Callable[[], None]) -> bool:
    """Return whether shards and held-out text on the work volume are those of a finished prepare.

    Args:
        work: root of the work volume.
        manifest: of that prepare.
        beat: called once a block.
    """
    return is_as_prepared(work, manifest, HELD_OUT) and not changed_shards(work, manifest, beat)


def changed_shards(
    work: Path, manifest: DataManifest, beat: Callable[[], None], *, rank: int = 0, world_size: int = 1
) -> list[str]:
    """Return a sentence for each shard file whose content is not the listed one, of those that this rank compares.

    Every file is read once by one rank: the largest first, each by the rank with the fewest bytes so far.

    Args:
        work: root of the work volume.
        manifest: on the work volume; `require_recorded_data` says whether it can be believed.
        beat: called once a block.
        rank: of this process.
        world_size: ranks that share the work.
    """
    files = [(shard.name, file) for shard in manifest.shards for file in shard.files]
    bytes_of_ranks = [0] * world_size
    problems: list[str] = []
    for name, file in sorted(files, key=lambda item: -item[1].size_bytes):
        reader = bytes_of_ranks.index(min(bytes_of_ranks))
        bytes_of_ranks[reader] += file.size_bytes
        if reader != rank:
            continue
        path = work / DATA / name / file.name
        found = sha256_of_file(path, beat) if path.is_file() else None
        if found != file.sha256:
            problems += changed_file(path, found, file.sha256).problems
    return problems
