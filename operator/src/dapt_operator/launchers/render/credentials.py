"""Renders the credentials of a run: entries of the user's Secrets, under a closed list of names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dapt_contract.pod.credentials import CREDENTIALS
from dapt_operator.stage_run import JsonObject, Manifest, StageRun

SECRET_PREFIX: Final = "DAPT_SECRET"
"""Beginning of the names under which a whole Secret is referred to. Nothing reads them."""


def credential_variables(run: StageRun, given: Sequence[Manifest]) -> list[JsonObject]:
    """Return one variable for each credential that one of the run's Secrets may hold; of two Secrets the later wins.

    A name that the profile's template sets is the profile's: a variable of the pod hides what a Secret has.
    """
    taken = {item.get("name") for item in given}
    return [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": name, "optional": True}}}
        for secret in run.secret_names
        for name in CREDENTIALS
        if name not in taken
    ]


def required_secrets(run: StageRun) -> list[JsonObject]:
    """Return references that keep a pod from starting without its Secrets.

    References to optional entries alone let a pod start without the Secret, and nobody would report that it is missing.
    The prefix gives its entries names that neither the interpreter nor a library reads.
    """
    return [
        {"prefix": f"{SECRET_PREFIX}_{number}_", "secretRef": {"name": name}}
        for number, name in enumerate(run.secret_names)
    ]
