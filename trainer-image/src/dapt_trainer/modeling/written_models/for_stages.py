"""Gives a stage an ordinary folder for whatever model it is asked to load.

A checkpoint of adapters, and what tuning made of one, are recipes. The stage that loads such a model writes it down
first, into its run's own folder. The worker removes it when the stage has ended, and not before: on a CPU the loaded
weights are the file, mapped into memory. Later stages need the recipe alone, whose parts stay.
"""

from __future__ import annotations

from dapt_contract.layout import WRITTEN, lineage_folder
from dapt_contract.stages.common import ModelReference
from dapt_contract.untrusted.folders import remove_folder, run_folders
from dapt_trainer.context import StageContext
from dapt_trainer.digests import HeldWeights, size_of_reference
from dapt_trainer.distributed import Ranks
from dapt_trainer.modeling.written_models.write_down import PARTIAL, write_down


class WrittenModels:
    """Writes the models of a stage down, one at a time.

    All ranks call every method alike.

    Args:
        context: of the stage.
        ranks: of the stage.
    """

    def __init__(self, context: StageContext, ranks: Ranks) -> None:
        self._context = context
        self._ranks = ranks
        self._reference: ModelReference | None = None
        self._plain: ModelReference | None = None
        self._held: HeldWeights | None = None

    def plain(self, reference: ModelReference) -> ModelReference:
        """Return a plain reference to the model; it is valid until the next call for another one.

        Nothing may be loaded any more, on any rank, from what the call before returned.

        Raises:
            InputError: as `write_down`.
            InfrastructureError: the volume is full or gone.
        """
        if reference.is_plain:
            return reference
        if self._plain is not None and self._reference == reference:
            return self._plain
        self._context.progress.update(activity=f"writing down the model of {_newest(reference)}")
        folder = self._context.try_folder / WRITTEN
        if self._ranks.is_first:
            _remove_leftovers(self._context)
        self._ranks.barrier()
        self._reference = reference
        # A rank without a file of its own waits for the others.
        with self._context.keep_alive(size_of_reference(self._context.work, reference)):
            self._plain = write_down(
                self._context.work,
                reference,
                folder,
                heartbeat=self._context.progress.heartbeat,
                ranks=self._ranks,
            ).reference
        self._held = HeldWeights(self._context.work, [self._plain])
        return self._plain

    def require_unchanged(self) -> None:
        """Raise if somebody has changed what was written; call it once it is loaded.

        Raises:
            InfrastructureError: names the folder.
        """
        if self._held is not None:
            self._held.require_unchanged()


def _newest(reference: ModelReference) -> str:
    return (reference.weights, *reference.adapters, *reference.tuned)[-1]


def _remove_leftovers(context: StageContext) -> None:
    """Remove what earlier runs of the same work have left, complete or not."""
    run = context.stage.run
    lineage = context.work / lineage_folder(run)
    for number, folder in run_folders(lineage):
        # A newer run's is in use: this run was replaced, and does not know it yet.
        if number < run.try_number:
            remove_folder(folder / WRITTEN)
            remove_folder(folder / (WRITTEN + PARTIAL))
