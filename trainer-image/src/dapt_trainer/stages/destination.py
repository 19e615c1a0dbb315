"""Tries where the model will be published (destination), before anything is paid for.

It has the write credentials that publish has. What it finds is refused by the same rules, and it leaves nothing behind.
"""

from __future__ import annotations

from dapt_contract.stages.destination import DestinationConfig, DestinationFacts, DestinationReport
from dapt_trainer.context import StageContext, keep_alive
from dapt_trainer.publishing.destinations import open_destination


def run(config: DestinationConfig, context: StageContext) -> DestinationReport:
    """Return what lies at the destination: nothing, or a result of the same run.

    Raises:
        InputError: the name is not valid, the place does not exist, is not empty, or must not be written.
        InfrastructureError: the network failed.
    """
    destination = open_destination(config.destination, work=context.work)
    context.progress.update(activity=f"trying {config.destination}")
    with keep_alive(context.progress):
        found = destination.require_writable(config.run_digest)
        destination.probe()
    return DestinationReport(facts=DestinationFacts(destination=config.destination, found=found))
