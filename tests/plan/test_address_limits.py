"""Limits of a profile on what is read and written, judged on addresses that lead where they say."""

from __future__ import annotations

from typing import Any

import pytest

from dapt_operator.api.v1alpha1.base import SKIP_RULES
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.admission import limit_breaches
from dapt_operator.plan.observed import DesiredState
from support import builders


def breaches(spec: dict[str, Any], **profile: Any) -> tuple[str, ...]:
    """The breaches of a spec that reads s3://text/... and writes s3://out/model where it does not say otherwise."""
    here = builders.merged(
        {
            "model": {"source": "s3://text/base"},
            "corpus": {"domain": [{"source": "s3://text/d"}], "general": [{"source": "s3://text/g"}]},
            "evaluation": {"domain": {"tasks": []}, "general": {"tasks": []}},
            "finetuning": {"data": [{"source": "s3://text/i"}]},
            "output": {"destination": "s3://out/model"},
        },
        spec,
    )
    adaptation = DomainAdaptationSpec.model_validate(
        builders.adaptation(**here)["spec"], context={SKIP_RULES: True}
    )
    offered = AdaptationProfileSpec.model_validate(builders.profile(**profile)["spec"])
    return limit_breaches(DesiredState(adaptation, offered, "bench"), "health")


SOURCES = {"limits": {"sources": ["s3://text/*"]}}


def test_what_lies_within_the_limits_is_allowed() -> None:
    assert breaches({}, **SOURCES) == ()
    assert breaches({}, limits={"sources": ["s3://text/*"], "destinations": ["s3://out/*"]}) == ()


@pytest.mark.parametrize(
    "address", ["s3://text/../other/x", "s3://text//x", "s3://text/%2e%2e/x", "s3://text/x::s3://other/y"]
)
def test_an_address_that_hides_where_it_leads_is_within_no_limit(address: str) -> None:
    assert breaches({"model": {"source": address}}, **SOURCES) == (
        f"source {address} is not allowed, since '..', '//', '::' or an encoded character hides where it leads"
        " (allowed: s3://text/*)",
    )
    (destination,) = breaches({"output": {"destination": address}}, limits={"destinations": ["s3://text/*"]})
    assert destination.startswith(f"destination {address} is not allowed, since")


@pytest.mark.parametrize(
    ("pattern", "address", "is_allowed"),
    [
        ("s3://text/v?.jsonl", "s3://text/v1.jsonl", True),
        ("s3://text/v?.jsonl", "s3://text/v*.jsonl", False),
        ("s3://text/v?.jsonl", "s3://text/v?.jsonl", False),
        ("s3://text/v[0-9].jsonl", "s3://text/v7.jsonl", True),
        ("s3://text/v[!0].jsonl", "s3://text/v7.jsonl", True),
        ("s3://text/v[!0].jsonl", "s3://text/v*.jsonl", False),
        ("s3://text/v[*].jsonl", "s3://text/v*.jsonl", False),
        ("s3://text/v??/*", "s3://text/v[/x", False),
        ("s3://text/v[1/x", "s3://text/v[1/x", False),
        ("s3://text/*", "s3://text/a[0-9]/**/*.jsonl", True),
        ("s3://text/*.jsonl", "s3://text/a?b.jsonl", True),
        ("s3://text/(a+)$", "s3://text/(a+)$", True),
        ("s3://text/a.b", "s3://text/axb", False),
        ("s3://text/\u00fc*", "s3://text/\u00fc x/y", True),
    ],
)
def test_a_wildcard_of_an_address_is_matched_by_a_star_alone(
    pattern: str, address: str, is_allowed: bool
) -> None:
    limits = {"sources": ["s3://text/base", "s3://text/g", "s3://text/i", pattern]}
    found = breaches({"corpus": {"domain": [{"source": address}]}}, limits=limits)
    assert [f"source {address} is not allowed" in sentence for sentence in found] == [True] * (not is_allowed)


def test_a_revision_with_an_encoded_slash_is_judged_as_it_is_written() -> None:
    model = {"model": {"source": "hf://org/base@feature%2Fx"}}
    assert breaches(model, limits={"sources": ["s3://*", "hf://org/*"]}) == ()


@pytest.mark.parametrize(
    ("sources", "is_allowed"),
    [
        (["s3://*"], False),
        (["s3://*", "hf://models/*"], False),
        (["s3://*", "hf://datasets/org/*"], False),
        (["s3://*", "hf://datasets/*"], True),
        (["s3://*", "hf://*"], True),
        (["s3://*", "harness://mmlu*"], True),
        ([], True),
    ],
)
def test_data_sets_of_the_harness_are_sources(sources: list[str], is_allowed: bool) -> None:
    found = breaches({"evaluation": {"general": {"tasks": [{"name": "mmlu"}]}}}, limits={"sources": sources})
    expected = (
        "task mmlu reads data sets of the hub that the harness names, which is not allowed (allowed:"
        f" {', '.join(sources)}; harness://mmlu would allow it)"
    )
    assert found == (() if is_allowed else (expected,))


def test_a_destination_outside_the_limits_is_refused() -> None:
    assert breaches({}, limits={"destinations": ["s3://models/*", "hf://org/*"]}) == (
        "destination s3://out/model is not allowed (allowed: s3://models/*, hf://org/*)",
    )


def test_no_model_is_written_to_the_claim_of_the_work_volume_or_of_the_cache() -> None:
    storage = {"claimTemplate": None, "existingClaim": "shared"}
    profile = {"storage": storage, "modelCache": {"existingClaim": "cache"}}
    for claim in ("shared", "cache"):
        (found,) = breaches({"output": {"destination": f"pvc://{claim}/model"}}, **profile)
        assert found == (
            f"destination pvc://{claim}/model is on the claim {claim}, which holds the work of adaptations; write to"
            " another claim"
        )
    assert breaches({"output": {"destination": "pvc://models/x"}}, **profile) == ()
