"""Lists the addresses that a spec reads, and the claims that addresses lie on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec

CLAIM_SCHEME: Final = "pvc://"


def sources(spec: DomainAdaptationSpec) -> tuple[str, ...]:
    """Return the URI of everything that prepare reads."""
    evaluation = spec.evaluation
    tasks = (*evaluation.domain.tasks, *evaluation.general.tasks)
    probes = (*evaluation.probes.domain, *evaluation.probes.general)
    return (
        spec.model.source,
        *(source.source for source in (*spec.corpus.domain, *spec.corpus.general)),
        *(task.source for task in tasks if task.source is not None),
        *(probe.source for probe in probes),
        *(source.source for source in (spec.finetuning.data if spec.finetuning else ())),
        *(source.source for source in (spec.preference.data if spec.preference else ())),
    )


def claims(uris: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the claims that `pvc://CLAIM/PATH` URIs lie on, each once, in the order of the manifest."""
    names = (uri.removeprefix(CLAIM_SCHEME).partition("/")[0] for uri in uris if uri.startswith(CLAIM_SCHEME))
    return tuple(dict.fromkeys(names))
