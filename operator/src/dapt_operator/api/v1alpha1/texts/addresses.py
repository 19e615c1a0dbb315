"""Defines the addresses of a spec: where a model and data are read, and where the result is written.

What is refused here would leave the place that an address names (`..`, `::`, encoded or look-alike dots), carry what
belongs elsewhere (credentials, endpoints), or name what cannot exist, so that it would only show after the training.
"""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from dapt_operator.api.v1alpha1.base import DESTINATION_PATTERN, MODEL_PATTERN, SOURCE_PATTERN
from dapt_operator.api.v1alpha1.texts.text_rules import VISIBLE, TextRule, TextRules

_CLAIM_SOURCE: Final = (
    "write pvc://CLAIM/FILES: the name of a claim in this namespace and a path on it, without '..'"
)
_CLAIM_DESTINATION: Final = (
    "write pvc://CLAIM/FOLDER: the name of a claim in this namespace and a folder on it, without '..'"
)
_WORK_CLAIM: Final = "this claim is the work volume of an adaptation; write to another claim"
_HUB_NAME: Final = (
    "letters, digits, '-', '_' and '.', no '--' or '..', no '-' or '.' at either end, at most 96 each"
)
_HUB_MODEL: Final = f"write hf://ORG/NAME@REVISION, also with /FILE.gguf; in the names {_HUB_NAME}"
_HUB_DATA: Final = f"write hf://datasets/ORG/NAME@REVISION/FILES; in the names {_HUB_NAME}"
_HUB_DESTINATION: Final = (
    f"write hf://ORG/NAME, a model repository; in the names {_HUB_NAME}, and no .git at the end"
)
_S3_NAME: Final = (
    "the name of a bucket has letters, digits, '-', '_' and '.', at most 255, and begins with neither '-' nor '.':"
    " correct it"
)
_GS_NAME: Final = (
    "the name of a bucket has lower-case letters, digits, '-', '_' and '.', at least three, and a letter or digit at"
    " either end: correct it"
)
_BUCKET_ITSELF: Final = "is the bucket itself, which holds what others have written; write a folder in it, such as s3://BUCKET/FOLDER"
_ADAPTATION: Final = "write adaptation://NAME, the name of an adaptation in this namespace"

# '.', and characters that are shown as dots or become dots when a text is normalized. The second class are two or more.
_DOTS: Final = ".\\u2024-\\u2026\\ufe12\\ufe19\\ufe30\\ufe52\\uff0e\\u3002\\uff61"
_MANY_DOTS: Final = "\\u2025\\u2026\\ufe19\\ufe30"
_SLASHES: Final = "/\\u2044\\u2215\\u2216\\u29f5\\u29f8\\u29f9\\ufe68\\uff0f\\uff3c\\u005c\\u005c"
_UP: Final = f"([{_DOTS}]{{2,}}|[{_MANY_DOTS}])"
_CLAIM: Final = "[a-z0-9]([a-z0-9.-]*[a-z0-9])?"
_WORD: Final = "[A-Za-z0-9_]([A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_TRAVERSAL: Final = f"://(.*[{_SLASHES}])?{_UP}([{_SLASHES}]|$)"

_REMOTE: Final = (
    VISIBLE,
    TextRule(
        "^[a-z]+://[^/]*@",
        "has an '@' before the path; credentials belong in a Secret that spec.credentials names",
        scheme="s3",
    ),
    TextRule(
        "^[a-z]+://[^/]*@",
        "has an '@' before the path; credentials belong in a Secret that spec.credentials names",
        scheme="gs",
    ),
    TextRule(
        f"^(hf|s3|gs){_TRAVERSAL}",
        "has '..' or what looks like it as a part of its path; write the path itself",
    ),
    TextRule(
        "^(hf|s3|gs|pvc)://[^/]*/.*::",
        "has '::', which would chain addresses; write a single address without it",
    ),
    TextRule(
        "^(hf|s3|gs|pvc)://.*%((25)*(2[eE]|5[cC]|[01][0-9a-fA-F]|7[fF])|(25)+2[fF])",
        "has an encoded dot, slash or control character, and nothing in an address is decoded; write the name itself",
    ),
    TextRule(
        "^(s3|gs|pvc)://.*%2[fF]",
        "has an encoded slash, and nothing in an address is decoded; write the name itself",
    ),
    TextRule(
        "^(hf|s3|gs|pvc)://.*[?][A-Za-z_][A-Za-z0-9_.-]*=",
        "has a query, and an address takes none; an endpoint belongs to the profile (docs/profiles.md)",
    ),
    TextRule(
        "^hf://[^@]*@[^/]*[.][.]", "has '..' in its revision; write a branch, a tag or a commit", scheme="hf"
    ),
    TextRule(
        "^hf://[^@]*@(/|$)",
        "has no revision behind the '@'; write a branch, a tag or a commit, or leave out the '@'",
        scheme="hf",
    ),
)
_CLUSTER: Final = TextRule(
    "^file://",
    "the cluster's pods cannot read a file of your machine; use pvc://, s3://, gs:// or hf://, or run the manifest on"
    " this machine with `dapt run`",
    on_cluster_only=True,
)
_BUCKETS: Final = (
    TextRule(
        "^s3://([A-Za-z0-9_][A-Za-z0-9._-]{0,254}|arn:aws[A-Za-z0-9_-]*:s3[A-Za-z0-9_:-]*)(/|$)",
        _S3_NAME,
        is_required=True,
        scheme="s3",
    ),
    TextRule("^gs://[a-z0-9][a-z0-9_.-]{1,220}[a-z0-9](/|$)", _GS_NAME, is_required=True, scheme="gs"),
)
_READ_CLAIM: Final = (
    TextRule(f"^pvc://{_CLAIM}(/|$)", _CLAIM_SOURCE, is_required=True, scheme="pvc"),
    TextRule(f"^pvc{_TRAVERSAL}", _CLAIM_SOURCE, scheme="pvc"),
)
_SOURCE: Final = TextRules(
    *_READ_CLAIM,
    TextRule(f"^hf://datasets/{_WORD}/{_WORD}(@|/|$)", _HUB_DATA, is_required=True, scheme="hf"),
    TextRule("^hf://datasets/([^/@]*/)?[^/@]*(--|[.][.])", _HUB_DATA, scheme="hf"),
    *_REMOTE,
    *_BUCKETS,
    _CLUSTER,
)
_MODEL: Final = TextRules(
    *_READ_CLAIM,
    TextRule(f"^hf://{_WORD}/{_WORD}(@|/|$)", _HUB_MODEL, is_required=True, scheme="hf"),
    TextRule("^hf://(([^/@]*/)?[^/@]*(--|[.][.])|datasets/)", _HUB_MODEL, scheme="hf"),
    TextRule("^adaptation://[a-z]([a-z0-9-]*[a-z0-9])?$", _ADAPTATION, is_required=True, scheme="adaptation"),
    *_REMOTE,
    *_BUCKETS,
    _CLUSTER,
)
_DESTINATION: Final = TextRules(
    TextRule("^(s3|gs)://[^/]*[./]*$", _BUCKET_ITSELF),
    TextRule(f"^pvc://{_CLAIM}/[./]*[^./]", _CLAIM_DESTINATION, is_required=True, scheme="pvc"),
    TextRule(f"^pvc{_TRAVERSAL}", _CLAIM_DESTINATION, scheme="pvc"),
    TextRule("^pvc://[^/]*-[0-9a-f]{8}-work/", _WORK_CLAIM, scheme="pvc"),
    TextRule(f"^hf://{_WORD}/{_WORD}/?$", _HUB_DESTINATION, is_required=True, scheme="hf"),
    TextRule("^hf://.*(--|[.][.]|[.]git/?$)", _HUB_DESTINATION, scheme="hf"),
    TextRule(
        "[]*?[]",
        "has a wildcard ('*', '?', '[' or ']'), and the result is written to one place; write the name itself",
    ),
    *_REMOTE,
    *_BUCKETS,
    _CLUSTER,
)

SourceUri = Annotated[str, Field(pattern=SOURCE_PATTERN, max_length=1024), _SOURCE]
"""Address of files that are read."""
ModelUri = Annotated[str, Field(pattern=MODEL_PATTERN, max_length=1024), _MODEL]
"""Address of the base model."""
DestinationUri = Annotated[str, Field(pattern=DESTINATION_PATTERN, max_length=1024), _DESTINATION]
"""Address that the result is written to."""
