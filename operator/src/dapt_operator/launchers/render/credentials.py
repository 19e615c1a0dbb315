"""Renders the credentials of a run: entries of the user's Secrets, under a closed list of names."""

from __future__ import annotations

from collections.abc import Sequence

from dapt_contract.pod.credentials import CREDENTIALS, SECRET_PREFIX
from dapt_operator.stage_run import JsonObject, Manifest, StageRun


def credential_variables(run: StageRun, given: Sequence[Manifest]) -> list[JsonObject]:
    """Return one variable for each credential that the last of the run's Secrets may hold.

    A name may occur once, so what the last Secret lacks, the trainer takes from the entries of `required_secrets`. A
    name that the profile's template sets is the profile's: a variable of the pod hides what a Secret has.
    """
    taken = {item.get("name") for item in given}
    return [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": name, "optional": True}}}
        for secret in run.secret_names[-1:]
        for name in CREDENTIALS
        if name not in taken
    ]


def required_secrets(run: StageRun) -> list[JsonObject]:
    """Return references that keep a pod from starting without its Secrets.

    References to optional entries alone let a pod start without the Secret, and nobody would report that it is missing.
    The prefix gives its entries names that neither the interpreter nor a library reads; the trainer takes credentials
    from them (`without_secrets`) and removes the rest.
    """
    return [
        {"prefix": f"{SECRET_PREFIX}_{number}_", "secretRef": {"name": name}}
        for number, name in enumerate(run.secret_names)
    ]
