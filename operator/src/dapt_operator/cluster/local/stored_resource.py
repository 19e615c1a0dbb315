"""The DomainAdaptation of a run folder: identity, generation, status and what may no longer change.

`objects/domainadaptation-NAME.json` is the truth; `status.yaml` is the same object without its spec, for people and
scripts.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML

from dapt_operator.api.schema.immutable import changed_blocks
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.v1alpha1.status import Frozen
from dapt_operator.cluster.errors import ConflictError
from dapt_operator.cluster.local.errors import LocalRunError
from dapt_operator.cluster.local.object_files import ObjectFiles
from dapt_operator.cluster.timestamps import micro_time
from dapt_operator.stage_run import Manifest, plain

DEFAULT_NAMESPACE = "default"
KIND = "DomainAdaptation"


class StoredResource:
    """One resource in its run folder."""

    def __init__(self, folder: Path, store: ObjectFiles, document: Manifest) -> None:
        """Create the resource, or take over the stored one with the spec of `document`.

        Raises:
            LocalRunError: the folder belongs to another resource, or a frozen block was changed.
        """
        self._path = folder / "status.yaml"
        self._store = store
        metadata = document["metadata"]
        self._name = str(metadata["name"])
        stored = next(iter(store.all(KIND)), None)
        if stored is None:
            stored = self._created(document)
        elif stored["metadata"]["name"] != self._name:
            raise LocalRunError(
                f"{folder} holds the run of {stored['metadata']['name']}, not of {self._name}: choose another folder"
            )
        elif stored["spec"] != plain(document["spec"]) or _waits_for_a_person(stored):
            self._refuse_frozen_changes(stored, document, folder)
            metadata = stored["metadata"] | {"generation": stored["metadata"]["generation"] + 1}
            stored = self._next(stored | {"metadata": metadata, "spec": plain(document["spec"])})
        self._write(stored)

    @property
    def value(self) -> dict[str, Any]:
        """The resource as stored."""
        found = self._store.get(KIND, self._name)
        assert found is not None
        return found

    @property
    def uid(self) -> str:
        """Identity of the resource."""
        return str(self.value["metadata"]["uid"])

    def ask_again(self) -> None:
        """Count one generation up, so that a stage that has no try left gets new ones: a person started the run."""
        metadata = self.value["metadata"] | {"generation": self.value["metadata"]["generation"] + 1}
        self._write(self._next(self.value | {"metadata": metadata}))

    def write_status(self, status: Mapping[str, Any], resource_version: str) -> None:
        """Replace the status; an equal one is not written.

        Raises:
            Conflict: someone wrote since.
        """
        current = self.value
        found = current["metadata"]["resourceVersion"]
        if found != resource_version:
            raise ConflictError(f"{self._name} has resource version {found}, not {resource_version}")
        if current.get("status") != plain(status):
            self._write(self._next(current | {"status": plain(status)}))

    def _created(self, document: Manifest) -> dict[str, Any]:
        metadata = plain(document["metadata"]) | {
            "uid": str(uuid.uuid4()),
            "generation": 1,
            "resourceVersion": "1",
            "creationTimestamp": micro_time(),
        }
        metadata.setdefault("namespace", DEFAULT_NAMESPACE)
        created: dict[str, Any] = plain(document) | {"metadata": metadata}
        created.pop("status", None)
        return created

    @staticmethod
    def _next(resource: dict[str, Any]) -> dict[str, Any]:
        version = str(int(resource["metadata"]["resourceVersion"]) + 1)
        return resource | {"metadata": resource["metadata"] | {"resourceVersion": version}}

    @staticmethod
    def _refuse_frozen_changes(stored: Manifest, document: Manifest, folder: Path) -> None:
        try:
            old = DomainAdaptationSpec.model_validate(stored["spec"])
            new = DomainAdaptationSpec.model_validate(document["spec"])
            frozen = (stored.get("status") or {}).get("frozen")
            problems = changed_blocks(old, new, Frozen.model_validate(frozen) if frozen else None)
        except ValidationError as error:
            raise LocalRunError(
                f"{folder} was made by another version of dapt ({error.errors()[0]['msg']}): start afresh with --fresh"
            ) from error
        if problems:
            advice = f"(this run is in {folder}; --fresh starts it afresh, another metadata.name keeps both)"
            raise LocalRunError(*(f"{problem} {advice}" for problem in problems.values()))

    def _write(self, resource: dict[str, Any]) -> None:
        if self._store.get(KIND, self._name) != resource:
            self._store.put(resource)
        shown = {name: value for name, value in resource.items() if name != "spec"}
        stream = io.StringIO()
        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = False
        yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        yaml.dump(shown, stream)
        self._store.write_file(self._path, stream.getvalue().encode())


def _waits_for_a_person(resource: Manifest) -> bool:
    """Whether it is stalled: then starting the command again is the person's act, and counts as a change."""
    conditions = (resource.get("status") or {}).get("conditions") or []
    true = {item["type"] for item in conditions if item["status"] == "True"}
    return "Stalled" in true and "Finished" not in true
