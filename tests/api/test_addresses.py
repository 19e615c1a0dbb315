"""Addresses as people have them: names with spaces, brackets, percent signs, and revisions with slashes."""

from __future__ import annotations

import re

import pytest

from dapt_operator.api.v1alpha1.base import DESTINATION_PATTERN, MODEL_PATTERN, SOURCE_PATTERN
from dapt_operator.api.v1alpha1.spec_corpus import Source

ADDRESSES = (
    "file://my projects/text/*.jsonl",
    "file:///data/proj[v2]/a b.jsonl",
    "s3://corpora/clinical notes/2024 #1 (final)/100%.parquet",
    "gs://corpora/ü 漢字/x.jsonl",
    "pvc://claim/a  b/c.txt",
    "hf://datasets/org/name@refs/pr/1/data/*.parquet",
    "hf://datasets/org/name@feature%2Fx/data",
)


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_name_is_accepted_as_it_is_written(address: str) -> None:
    assert Source(source=address).source == address
    for pattern in (SOURCE_PATTERN, MODEL_PATTERN, DESTINATION_PATTERN):
        assert re.search(pattern, address)


@pytest.mark.parametrize(
    "address", ["file://", "s3:// a", "s3://a ", "s3://a\nb", " s3://a", "ftp://a", "a b"]
)
def test_an_address_neither_begins_nor_ends_with_a_space_nor_breaks(address: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        Source(source=address)
