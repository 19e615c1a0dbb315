"""Stores the DomainAdaptation of a run folder: identity, generation, status, and which blocks are frozen.

`objects/domainadaptation-NAME.json` is the source; `status.yaml` is a copy without the spec, for users and scripts.
"""

from __future__ import annotations

import io
import uuid
from pathlib import Path
from typing import Final

from pydantic import ValidationError
from ruamel.yaml import YAML

from dapt_operator.api.schema.immutable import changed_blocks
from dapt_operator.api.v1alpha1.conditions import FINISHED, STALLED
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.v1alpha1.status import Frozen
from dapt_operator.cluster.errors import ConflictError
from dapt_operator.cluster.local.errors import LocalRunError
from dapt_operator.cluster.local.object_files import ObjectFiles
from dapt_operator.cluster.timestamps import micro_time
from dapt_operator.launchers.observe.run_states import true_conditions
from dapt_operator.stage_run import JsonObject, Manifest, plain

DEFAULT_NAMESPACE: Final = "default"
KIND: Final = "DomainAdaptation"


class StoredResource:
    """Holds the one resource of a run folder."""

    def __init__(self, folder: Path, store: ObjectFiles, document: Manifest) -> None:
        """Create the resource, or update the stored one with the spec of `document`.

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
        elif stored["spec"] != plain(document["spec"]) or _requires_user_action(stored):
            self._refuse_frozen_changes(stored, document, folder)
            stored = self._next_generation(stored | {"spec": plain(document["spec"])})
        self._write(stored)

    @property
    def value(self) -> JsonObject:
        """The resource as stored."""
        stored = self._store.get(KIND, self._name)
        if stored is None:
            raise LookupError(f"{KIND} {self._name}")
        return stored

    @property
    def uid(self) -> str:
        """Uid of the resource."""
        return str(self.value["metadata"]["uid"])

    def renew_retries(self) -> None:
        """Increase the generation, so that a stage without retries gets new ones: starting the run is a user action."""
        self._write(self._next_generation(self.value))

    def write_status(self, status: Manifest, resource_version: str) -> None:
        """Replace the status; an equal one is not written.

        Raises:
            ConflictError: someone wrote since it was read.
        """
        current = self.value
        current_version = current["metadata"]["resourceVersion"]
        if current_version != resource_version:
            raise ConflictError(
                f"{self._name} has resource version {current_version}, not {resource_version}"
            )
        if current.get("status") != plain(status):
            self._write(self._next_version(current | {"status": plain(status)}))

    def _created(self, document: Manifest) -> JsonObject:
        metadata = plain(document["metadata"]) | {
            "uid": str(uuid.uuid4()),
            "generation": 1,
            "resourceVersion": "1",
            "creationTimestamp": micro_time(),
        }
        metadata.setdefault("namespace", DEFAULT_NAMESPACE)
        created: JsonObject = plain(document) | {"metadata": metadata}
        # A manifest that was read from a cluster may have one, and this run begins without.
        created.pop("status", None)
        return created

    @staticmethod
    def _next_version(resource: JsonObject) -> JsonObject:
        version = str(int(resource["metadata"]["resourceVersion"]) + 1)
        return resource | {"metadata": resource["metadata"] | {"resourceVersion": version}}

    @classmethod
    def _next_generation(cls, resource: JsonObject) -> JsonObject:
        metadata = resource["metadata"] | {"generation": resource["metadata"]["generation"] + 1}
        return cls._next_version(resource | {"metadata": metadata})

    @staticmethod
    def _refuse_frozen_changes(stored: Manifest, document: Manifest, folder: Path) -> None:
        try:
            old = DomainAdaptationSpec.model_validate(stored["spec"])
            new = DomainAdaptationSpec.model_validate(document["spec"])
            frozen = (stored.get("status") or {}).get("frozen")
            problems = changed_blocks(old, new, Frozen.model_validate(frozen) if frozen else None)
        except ValidationError as error:
            raise LocalRunError(
                f"{folder} was written by another version of dapt ({error.errors()[0]['msg']}): start over with --fresh"
            ) from error
        if problems:
            advice = f"(this run is in {folder}; --fresh starts over, another metadata.name keeps both)"
            raise LocalRunError(*(f"{problem} {advice}" for problem in problems.values()))

    def _write(self, resource: JsonObject) -> None:
        if self._store.get(KIND, self._name) != resource:
            self._store.put(resource)
        # The copy comes second: after a kill in between, the next write makes it good.
        shown = {name: value for name, value in resource.items() if name != "spec"}
        stream = io.StringIO()
        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = False
        yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        yaml.dump(shown, stream)
        self._store.write_file(self._path, stream.getvalue().encode())


def _requires_user_action(resource: Manifest) -> bool:
    """Whether the resource is stalled: starting the command again then is the user action, and counts as a change."""
    conditions = true_conditions(resource)
    return STALLED in conditions and FINISHED not in conditions
