"""Names of the harness' tasks: wrong ones are refused with what is near."""

from __future__ import annotations

import gzip
from importlib.metadata import version

import pytest

from dapt_contract.inputs import harness

NAMED_IN_THE_LESSONS = (
    "medqa_4options",
    "medmcqa",
    "pubmedqa",
    "mmlu",
    "arc_challenge",
    "hellaswag",
    "truthfulqa_mc1",
    "legalbench",
)


@pytest.mark.parametrize("name", NAMED_IN_THE_LESSONS)
def test_a_known_task_is_not_refused(name: str) -> None:
    assert harness.unknown_task_message(name) is None


@pytest.mark.parametrize(
    ("name", "near"),
    [
        (
            "financeqa",
            "; near: mmlu_professional_accounting, mmlu_econometrics, mmlu_business_ethics, financial_tweets",
        ),
        ("BioASQ", "; near: medqa_4options, medmcqa, pubmedqa, multimedqa"),
        ("medqa", "; near: medqa_4options, medmcqa, pubmedqa, multimedqa"),
        ("hellaswg", "; near: hellaswag, hellaswag_vi, hellaswag_uk, hellaswag_te"),
        ("xyzzy", ""),
    ],
)
def test_an_unknown_task_is_refused_with_suggestions(name: str, near: str) -> None:
    assert harness.unknown_task_message(name) == (
        f"lm-evaluation-harness {harness.shipped_tasks().version} has no task {name!r}{near}; write one of its names, "
        "or give the task a source of your own"
    )


def test_related_tasks_exist_and_their_keys_do_not() -> None:
    names = set(harness.shipped_tasks().names)
    assert not names & harness.RELATED_TASKS.keys()
    assert {near for many in harness.RELATED_TASKS.values() for near in many} <= names


def test_names_longer_than_a_manifest_allows_are_left_out() -> None:
    packed = harness.HarnessTasks("1.2", ("short", "l" * 41, "a")).pack()
    assert gzip.decompress(packed) == b"1.2\na\nshort"


@pytest.mark.torch
def test_the_stored_names_match_the_installed_harness() -> None:
    """Stale? Run `python -m dapt_trainer.data.harness.task_names` and commit the file."""
    if version("lm_eval") != harness.shipped_tasks().version:
        pytest.skip(f"the list is of lm-evaluation-harness {harness.shipped_tasks().version}")
    from dapt_trainer.data.harness.task_names import installed_tasks

    assert gzip.decompress(installed_tasks().pack()).decode().split()[1:] == list(
        harness.shipped_tasks().names
    )
