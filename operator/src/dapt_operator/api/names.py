"""Derives the names, labels and annotations of the objects that the operator creates, from the run key."""

from __future__ import annotations

GROUP = "dapt.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

LABEL_NAME = f"{GROUP}/adaptation"
LABEL_UID = f"{GROUP}/uid"
LABEL_STAGE = f"{GROUP}/stage"
LABEL_KIND = f"{GROUP}/kind"
LABEL_ATTEMPT = f"{GROUP}/attempt"
LABEL_CANDIDATE = f"{GROUP}/candidate"
LABEL_TRY = f"{GROUP}/try"
LABEL_FENCE = f"{GROUP}/fence"
LABEL_RUN = f"{GROUP}/run"
"""First 16 hexadecimal digits of the run key."""
ANNOTATION_CONFIG_DIGEST = f"{GROUP}/config-digest"
ANNOTATION_GENERATION = f"{GROUP}/generation"
"""Generation of the spec that a run was created from."""
ANNOTATION_PROFILE_DIGEST = f"{GROUP}/profile-digest"
"""Digest of the profile that a run was created from."""
SIGNING_SECRET_PATTERN = r"^dapt-.*-[0-9a-f]{8}-signing$"
"""Names that a Secret with a signing key may have, of any adaptation."""
MAX_NAME_PART = 30


def object_name(adaptation: str, stage: str, run_key: str) -> str:
    """Return at most 30 characters of the resource's name, the stage, and 8 characters of the key's hash.
    >>> object_name("clinical-llama", "pretrain", "0123456789abcdef")
    'clinical-llama-pretrain-01234567'
    >>> object_name("clinical-llama", "tuning_data", "0123456789abcdef")
    'clinical-llama-tuning-data-01234567'
    """
    return f"{_part(adaptation)}-{stage.replace('_', '-')}-{run_key[:8]}"


def service_name(adaptation: str, uid: str) -> str:
    """Return the name of the one headless Service of an adaptation."""
    return f"{_part(adaptation)}-{uid[:8]}"


def signing_secret_name(adaptation: str, uid: str) -> str:
    """Return the name of the Secret with the key of the checkpoints' signatures."""
    return f"dapt-{_part(adaptation)}-{uid[:8]}-signing"


def work_claim_name(adaptation: str, uid: str) -> str:
    """Return the name of the work volume's claim, for profiles that have a template for it."""
    return f"{_part(adaptation)}-{uid[:8]}-work"


def _part(adaptation: str) -> str:
    return adaptation[:MAX_NAME_PART].rstrip("-.")
