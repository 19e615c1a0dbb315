"""Checks the names in addresses by the rules of the libraries that open them, as far as no network is needed."""

from __future__ import annotations

import re
from typing import Final, Literal

from dapt_operator.api.v1alpha1.base import NAME_PATTERN

Role = Literal["model", "source", "destination"]
"""What an address is for: the base model, other files that are read, or the place that is written."""

_HUB_WORD: Final = re.compile(r"[A-Za-z0-9_.-]{1,96}")
_S3_BUCKET: Final = re.compile(r"[A-Za-z0-9.\-_]{1,255}|arn:aws[\w-]*:s3[\w:-]*")
"""What botocore accepts: the rules for new buckets are stricter, but older buckets and other stores are not."""
_GS_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{1,220}[a-z0-9]")

_CLAIM_SOURCE: Final = (
    "write pvc://CLAIM/FILES: the name of a claim in this namespace and a path on it, without '..'"
)
_CLAIM_DESTINATION: Final = (
    "write pvc://CLAIM/FOLDER: the name of a claim in this namespace and a folder on it, without '..'"
)
_HUB_NAME: Final = (
    "letters, digits, '-', '_' and '.', no '--' or '..', no '-' or '.' at either end, at most 96 each"
)
_HUB_MODEL: Final = f"write hf://ORG/NAME@REVISION, also with /FILE.gguf; in the names {_HUB_NAME}"
_HUB_DATA: Final = f"write hf://datasets/ORG/NAME@REVISION/FILES; in the names {_HUB_NAME}"
_HUB_DESTINATION: Final = (
    f"write hf://ORG/NAME, a model repository; in the names {_HUB_NAME}, and no .git at the end"
)
_S3_NAME: Final = "the name of a bucket has letters, digits, '-', '_' and '.', at most 255: correct it"
_GS_NAME: Final = (
    "the name of a bucket has lower-case letters, digits, '-', '_' and '.', at least three, and a letter or digit at"
    " either end: correct it"
)


def address_message(address: str, role: Role) -> str | None:
    """Return what is wrong with an address that fits its field's pattern; None when nothing is."""
    scheme, _, rest = address.partition("://")
    if scheme == "pvc":
        return _claim(rest, role)
    if scheme == "hf":
        return _hub(rest, role)
    bucket = rest.partition("/")[0]
    if scheme == "s3" and not _S3_BUCKET.fullmatch(bucket):
        return _S3_NAME
    return _GS_NAME if scheme == "gs" and not _GS_BUCKET.fullmatch(bucket) else None


def _claim(rest: str, role: Role) -> str | None:
    # A claim's name becomes a folder of pods; a destination that cannot exist would only show after the training.
    claim, _, folder = rest.partition("/")
    has_folder = bool(folder.strip("/")) or role != "destination"
    if re.fullmatch(NAME_PATTERN, claim) and has_folder and ".." not in folder.split("/"):
        return None
    return _CLAIM_DESTINATION if role == "destination" else _CLAIM_SOURCE


def _hub(rest: str, role: Role) -> str | None:
    parts = rest.strip("/").split("/")
    if role == "destination":
        is_good = len(parts) == 2 and all(map(_is_hub_name, parts)) and not parts[1].endswith(".git")
        return None if is_good else _HUB_DESTINATION
    is_data = parts[0] == "datasets"
    owner, name = (*parts[is_data:], "", "")[:2]
    is_good = is_data == (role == "source") and _is_hub_name(owner) and _is_hub_name(name.partition("@")[0])
    if is_good:
        return None
    return _HUB_DATA if role == "source" else _HUB_MODEL


def _is_hub_name(name: str) -> bool:
    """Return whether the hub's client accepts a name (`huggingface_hub.utils.validate_repo_id`)."""
    return (
        _HUB_WORD.fullmatch(name) is not None
        and "--" not in name
        and ".." not in name
        and name[0] not in "-."
        and name[-1] not in "-."
    )
