"""Whether the stage.json that a live run reads is still the one that was written."""

from __future__ import annotations

import hashlib

from dapt_operator.cluster.kubernetes.polls.poller import TIMEOUT_SECONDS, Poller
from dapt_operator.cluster.kubernetes.resources import KINDS
from dapt_operator.launchers.render.objects import STAGE_FILE_KEY
from dapt_operator.stage_run import Manifest

LOOK_AGAIN_SECONDS = 45.0


class StageDigests(Poller[str | None]):
    """SHA-256 of stage.json in the ConfigMap of live runs that have pods; None: the ConfigMap is gone."""

    first_look_seconds = 10.0
    """After a pod is there. A run that is over sooner is not looked at: its pods compare the digest themselves."""

    def _ask(self, run: Manifest) -> str | None:
        path = KINDS["ConfigMap"].path(str(run["metadata"]["namespace"]), str(run["metadata"]["name"]))
        config = self._api.get(path, attempts=1, timeout_seconds=TIMEOUT_SECONDS)
        if config is None:
            return None
        text = str((config.get("data") or {}).get(STAGE_FILE_KEY, ""))
        return hashlib.sha256(text.encode(errors="replace")).hexdigest()

    def _rest_seconds(self, asked_for_seconds: float) -> float:  # noqa: ARG002
        return LOOK_AGAIN_SECONDS
