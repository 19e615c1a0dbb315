"""The size of the work volume against what an attempt writes, and how its ranks share sequences and models."""

from __future__ import annotations

from typing import Any

import pytest

from dapt_operator.api.v1alpha1.profile import AdaptationProfile
from dapt_operator.api.v1alpha1.spec import DomainAdaptation
from dapt_operator.plan.sizing.estimate import Estimate, EstimateFacts, estimate
from dapt_operator.plan.sizing.work_volume import WorkVolume
from support.builders import adaptation, model_facts, profile


def estimated(size: object, **over: Any) -> Estimate:
    storage: dict[str, Any] = {"existingClaim": None, "claimTemplate": {"accessModes": ["ReadWriteMany"]}}
    if size is not None:
        storage["claimTemplate"]["resources"] = {"requests": {"storage": size}}
    facts = EstimateFacts(model=model_facts(key_value_heads=2), domain_tokens=10**7, general_tokens=10**6)
    spec = DomainAdaptation.model_validate(adaptation(**over)).spec
    return estimate(spec, AdaptationProfile.model_validate(profile(storage=storage)).spec, facts)


def volume(size: object, **over: Any) -> WorkVolume:
    found = estimated(size, **over).volume
    assert found is not None
    return found


FULL: dict[str, Any] = {"pretraining": {"method": {"full": {}, "lora": None}}}


def test_checkpoints_larger_than_the_claim_are_refused_with_what_would_fit() -> None:
    found = estimated("4Gi", **FULL)
    assert found.problems == (
        "the prepared data and the checkpoints of one attempt take 4.3 GiB, and the profile's claimTemplate asks for"
        " 4.0 GiB, of which the file system keeps 5%: what would fit: spec.pretraining.checkpoints.count of at most 2;"
        " lora (0.9 GiB); a claimTemplate that asks for 5Gi or more",
    )


def test_blends_and_tuned_models_that_may_not_fit_are_warned_about() -> None:
    found = estimated("5Gi", **FULL, selection={"averageLast": 3})
    assert found.problems == ()
    assert [text for text in found.warnings if "claimTemplate" in text] == [
        "the stages of one attempt write up to 5.6 GiB (prepare 298.5 MiB, pretrain 4.0 GiB, blend 1.0 GiB, finetune"
        " 330.2 MiB), and the profile's claimTemplate asks for 5.0 GiB, of which the file system keeps 5%: what would"
        " fit: spec.pretraining.checkpoints.count of at most 1; lora (2.2 GiB); a claimTemplate that asks for 6Gi or"
        " more"
    ]


@pytest.mark.parametrize("size", [None, "much", "1Ti", 10**13])
def test_a_volume_of_unknown_or_ample_size_has_no_warning(size: object) -> None:
    found = volume(size, **FULL)
    assert (found.problems, found.warnings) == ((), ())
    assert (found.size_bytes is None) == (size in (None, "much"))


def test_ranks_of_different_nodes_that_share_a_sequence_are_warned_about() -> None:
    shared = {"pretraining": {"distribution": {"sequenceParallel": 2}}}
    one_node, two_nodes = (
        estimated(None, resources={"nodes": 2, "gpusPerNode": per_node}, **shared).warnings
        for per_node in (2, 1)
    )
    assert not [text for text in one_node if "sequenceParallel" in text]
    (text,) = (text for text in two_nodes if "sequenceParallel" in text)
    assert text == (
        "spec.pretraining.distribution.sequenceParallel is 2 on nodes of 1: ranks of different nodes share a sequence,"
        " and attention exchanges its heads over the network in every layer; a divisor of 1 keeps that on the links of"
        " a node"
    )
