"""Tests that hostile texts of pods and of the cluster reach status, Events and metrics cleaned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from dapt_contract.pod.failure import Cause, ExitCode
from dapt_contract.pod.progress import Progress
from dapt_contract.stages.prepare import PrepareFacts
from dapt_operator.runtime.metrics import exposition, summarize
from dapt_operator.testing.objects import Ends, Script, Stays
from support.builders import healthy
from support.hostile_texts import HOSTILE_TEXTS, assert_inert
from support.worlds import World

# JSON has no half of a surrogate pair: such a message is refused as a whole.
TEXTS = [text for text in HOSTILE_TEXTS if "\ud800" not in text]


def strings(value: Any) -> Iterator[str]:
    """Yield every text of a JSON value, the names of fields too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for pair in value.items() for item in pair for text in strings(item))
    elif isinstance(value, list | tuple):
        yield from (text for item in value for text in strings(item))


def warned(text: str) -> Script:
    def script(run: Any) -> Ends | Stays:
        ends = healthy(run)
        if isinstance(ends, Ends) and isinstance(ends.facts, PrepareFacts):
            return Ends(facts=ends.facts.model_copy(update={"warnings": (text,)}))
        return ends

    return script


SCRIPTS: dict[str, Any] = {
    "failure": lambda text: lambda run: Ends(ExitCode.BAD_INPUT, None, text, Cause.BAD_INPUT),
    "crash": lambda text: lambda run: Ends(ExitCode.UNKNOWN, None, text, Cause.CRASH),
    "pending": lambda text: lambda run: Stays(pending_reason=f"Unschedulable: {text}"),
    "waiting": lambda text: lambda run: Stays(waiting=f"ErrImagePull: {text}"),
    "reading": lambda text: (
        lambda run: Stays(
            progress=Progress(run_key=run.run.key, stage=run.run.stage, activity=text, fraction=0.5)
        )
    ),
    "warning": warned,
}


@pytest.mark.parametrize("kind", SCRIPTS)
def test_hostile_text_reaches_status_events_and_metrics_cleaned(kind: str) -> None:
    for text in TEXTS:
        world = World()
        for _ in range(4):
            world.reconcile()
            world.cluster.run_pods(world.key, SCRIPTS[kind](text))
            world.cluster.advance(30)
        world.reconcile()
        shown = [*strings(world.status), *(event.message for event in world.cluster.events(world.key))]
        for value in shown:
            assert_inert(value)
        if kind not in ("reading",):  # what it is doing is shown in the live view alone
            assert any("visible" in value for value in shown), text
        resource = world.cluster.observe(world.key).resource
        assert resource is not None
        assert_inert(exposition([summarize(resource)]).decode())
