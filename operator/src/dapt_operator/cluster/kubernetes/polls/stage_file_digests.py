"""Polls the ConfigMaps of live runs for changes of stage.json."""

from __future__ import annotations

import hashlib

from dapt_operator.cluster.kubernetes.polls.poller import TIMEOUT_SECONDS, Poller
from dapt_operator.cluster.kubernetes.resources import KINDS
from dapt_operator.launchers.render.objects import STAGE_FILE_KEY
from dapt_operator.stage_run import Manifest


class StageDigests(Poller[str | None]):
    """Polls the SHA-256 of stage.json in the ConfigMap of each live run with pods; None: the ConfigMap is gone."""

    first_poll_seconds = 10.0
    """Counted from the first pod. A run that ends sooner is not polled: its pods compare the digest themselves."""
    interval_seconds = 45.0

    def _poll(self, run: Manifest) -> str | None:
        path = KINDS["ConfigMap"].path(str(run["metadata"]["namespace"]), str(run["metadata"]["name"]))
        config_map = self._api.get(path, attempts=1, timeout_seconds=TIMEOUT_SECONDS)
        if config_map is None:
            return None
        text = str((config_map.get("data") or {}).get(STAGE_FILE_KEY, ""))
        return hashlib.sha256(text.encode(errors="replace")).hexdigest()
