"""Reads the whole corpus: shares its slices among all processes and pods, and puts together what they leave.

The first pod imports the model, reads the evaluation items, and then writes `plan.json`. The other pods wait for it at
the work volume, read slices, and end. They look for the sources themselves, in the configuration that the operator
gave them: nothing on the volume names a file that is read.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from dapt_contract.base import Contract
from dapt_contract.envelope import ContractError, digest_of, read_envelope, write_envelope
from dapt_contract.layout import MODEL, REPORT
from dapt_contract.measure import Side
from dapt_contract.stages.prepare import PrepareConfig
from dapt_contract.untrusted.folders import run_folders
from dapt_trainer.context import StageContext
from dapt_trainer.data.analysis import AnalysisPool, AnalysisSettings
from dapt_trainer.data.base_model.facts import TokenizerDescription
from dapt_trainer.data.choose_held_out import Corpus
from dapt_trainer.data.dedup.contamination import ContaminationIndex, EvaluationItem, contamination_index
from dapt_trainer.data.dedup.minhash import BAND_MEMORY_BYTES
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.items.checked_records import write_lines
from dapt_trainer.data.items.measured_items import read_item_lines
from dapt_trainer.data.packing.data_manifest import TokenType
from dapt_trainer.data.slices.board import SliceBoard
from dapt_trainer.data.slices.cut import CorpusSlice, CorpusSource, slices_of
from dapt_trainer.data.slices.merge import MergedSide
from dapt_trainer.data.slices.read_slice import ReadingRules, SliceReader
from dapt_trainer.data.slices.records import SliceSpool, slices_key
from dapt_trainer.data.slices.shared_reading import (
    ReadingProgress,
    SharedReading,
    read_slices,
    wait_for_slices,
)
from dapt_trainer.data.slices.spooled_source import SpooledSource, mark_repeats
from dapt_trainer.data.stage_inputs import SIDES, find_sources
from dapt_trainer.errors import InfrastructureError

SPOOL: Final = "corpus"
"""Folder below the run's own of everything that is read, until it is packed."""
PREPARED_FOLDER: Final = "prepared"
"""Folder below the run's own with what is moved into place at the end."""
_PLAN, _ITEMS = "plan.json", "items.jsonl"
_PLAN_SCHEMA = "dapt.prepare-plan"
_POLL_SECONDS = 1.0
Beat = Callable[[], None]


class ReadingPlan(Contract):
    """Says how documents are stored, so that all pods store them alike; with its defaults, nothing is read."""

    begin_of_text_id: int | None = None
    end_of_text_id: int = 0
    token_type: TokenType = "uint32"
    slices_digest: str = ""
    """Of the sources' files and of how they are cut, which all pods must see alike."""
    settings_digest: str = ""
    """Of the tokenizer and the evaluation items."""


@dataclass(frozen=True)
class StoredForm:
    """Says how documents are stored: in which tokens, and cleaned of which items."""

    tokenizer_json: str
    begin_of_text_id: int | None
    end_of_text_id: int
    token_type: TokenType
    contamination: ContaminationIndex

    @classmethod
    def of(
        cls, tokenizer: TokenizerDescription, token_type: TokenType, contamination: ContaminationIndex
    ) -> StoredForm:
        """Return the form of documents in the tokens of a model."""
        return cls(
            tokenizer.tokenizer_json,
            tokenizer.begin_of_text_id,
            tokenizer.end_of_text_id,
            token_type,
            contamination,
        )


def shared_reading(config: PrepareConfig, context: StageContext, form: StoredForm) -> SharedReading:
    """Return what all processes that read the corpus know."""
    finds_near = config.deduplicate == "near"
    rules = ReadingRules(
        seed=config.seed,
        deduplicate=config.deduplicate != "none",
        held_out_fraction=config.held_out_fraction,
        bad_records_max_fraction=config.bad_records_max_fraction,
        token_type=form.token_type,
        special_tokens=1 + (form.begin_of_text_id is not None),
        tasks=form.contamination.tasks,
        keeps_texts=config.tokenizer_extension is not None,
        keeps_signatures=finds_near,
    )
    settings = AnalysisSettings(
        form.tokenizer_json,
        form.begin_of_text_id,
        form.end_of_text_id,
        form.contamination,
        computes_signatures=finds_near,
    )
    run = context.stage.run
    board = SliceBoard(context.try_folder / SPOOL, _earlier_spools(config, context), slices_key(run.uid))
    return SharedReading.of(board, rules, settings, run.uid, run.key)


def _earlier_spools(config: PrepareConfig, context: StageContext) -> list[Path]:
    """Return the folders that earlier runs have left, the newest first.

    Once a run has reported, nothing that lies on the volume is believed without its digest: there are none.
    """
    if config.prepared_digest is not None:
        return []
    own = context.stage.run.try_number
    found = run_folders(context.try_folder.parent)
    return [folder / SPOOL for number, folder in reversed(found) if number < own]


@dataclass(frozen=True)
class ReadCorpus:
    """Holds the corpus, and the sides that candidates for held-out text are chosen from."""

    corpus: Corpus
    sides: dict[Side, MergedSide]


def read_corpus(
    shared: SharedReading,
    sources: Sequence[CorpusSource],
    problems: Problems,
    show: Callable[[str, float, int | None], None],
    beat: Beat,
    memory_bytes: int | None = None,
) -> ReadCorpus:
    """Read all sources with the help of the other pods; report their problems.

    Args:
        shared: by all processes.
        sources: in their order.
        problems: gets a sentence for each fault.
        show: shows an activity, the share of the text that is read, and the tokens so far.
        beat: called now and then.
        memory_bytes: of the pod, half of which the search for near-duplicates may take; None: not known.

    Raises:
        InputError: a text takes too long, or the tokenizer fails at it.
        InfrastructureError: a process was killed, or the work volume changed.
    """
    slices = shared_slices(sources)
    total_bytes = sum(source.size_bytes for source in sources)
    progress = ReadingProgress(
        total_bytes, lambda label, share, tokens: show(f"tokenizing {label}", share, tokens)
    )
    read = ReadCorpus(Corpus([], {}), {side: MergedSide(side, shared.rules) for side in SIDES})
    band_bytes = BAND_MEMORY_BYTES if memory_bytes is None else max(1, memory_bytes // 2)
    with AnalysisPool(shared.settings, beat=beat) as pool:
        read_slices(shared, slices, progress, pool, beat)
        wait_for_slices(shared, slices, progress, beat)
        for side, merged in read.sides.items():
            spooled: list[SpooledSource] = []
            for source in sources:
                if source.side != side:
                    continue
                own = [entry for entry in slices if entry.source is source]
                if source.is_sampled:
                    own = slices_of(source)
                    _read_sample(shared, SliceReader(shared.rules, pool), own[0], merged, progress)
                spooled.append(merged.add(source, *_finished(shared.board, own), problems))
            # With a problem the run ends anyway; the other side is still read for problems of its own.
            if not problems and shared.rules.keeps_signatures:
                share = progress.done_bytes / max(1, total_bytes)
                show(f"searching for near-duplicates in {side} text", share, None)
                spooled = mark_repeats(spooled, shared.board.folder / f"bands-{side}", beat, band_bytes)
            read.corpus.spooled.extend(spooled)
    return read


def shared_slices(sources: Sequence[CorpusSource]) -> list[CorpusSlice]:
    """Return the slices that any process may read.

    Which sample is read of a source depends on what was read before: the first pod reads it when all that is known.
    """
    return [entry for source in sources if not source.is_sampled for entry in slices_of(source)]


def _read_sample(
    shared: SharedReading,
    reader: SliceReader,
    sample: CorpusSlice,
    merged: MergedSide,
    progress: ReadingProgress,
) -> None:
    def show(tokens: int) -> None:
        progress.during(sample, tokens)

    record = shared.finish(reader, sample, show, known_keys=merged.known_keys)
    progress.note(sample, record.tokens)


def _finished(board: SliceBoard, slices: Sequence[CorpusSlice]) -> tuple[list[CorpusSlice], list[SliceSpool]]:
    """Return a source's slices with what they left, up to the first that was not read: the source cannot be used."""
    names = board.finished()
    finished = list(itertools.takewhile(lambda entry: entry.name in names, slices))
    try:
        return finished, [board.spool(entry) for entry in finished]
    except ContractError as error:
        raise InfrastructureError(
            f"{error}; the work volume changed while prepare ran: run it again"
        ) from error


def write_plan(
    context: StageContext,
    form: StoredForm,
    shared: SharedReading,
    sources: Sequence[CorpusSource],
    items: Sequence[EvaluationItem],
) -> None:
    """Let the other pods of the run begin.

    Raises:
        OSError: the disk is full.
    """
    folder = context.try_folder / SPOOL
    write_lines(folder / _ITEMS, (asdict(item) for item in items))
    plan = ReadingPlan(
        begin_of_text_id=form.begin_of_text_id,
        end_of_text_id=form.end_of_text_id,
        token_type=form.token_type,
        slices_digest=_digest_of_slices(sources),
        settings_digest=shared.settings_digest,
    )
    write_envelope(folder / _PLAN, _PLAN_SCHEMA, plan, run_key=context.stage.run.key, key=shared.board.key)


def help_to_read(config: PrepareConfig, context: StageContext, beat: Beat) -> ReadingPlan:
    """Read slices in a pod that is not the first; return when none is left what they were read by.

    Args:
        config: of the stage.
        context: of this pod.
        beat: called now and then.

    Raises:
        InputError: a text takes too long, or the tokenizer fails at it.
        InfrastructureError: this pod sees other files than the first one.
    """
    # 1. Wait for the first pod. Its report is there where nothing had to be read, or was read before this pod started.
    folder = context.try_folder / SPOOL
    while not (folder / _PLAN).is_file():
        if (context.try_folder / REPORT).is_file():
            return ReadingPlan()
        beat()
        time.sleep(_POLL_SECONDS)
    try:
        _, plan = read_envelope(
            folder / _PLAN, _PLAN_SCHEMA, ReadingPlan, key=slices_key(context.stage.run.uid)
        )
        form = StoredForm(
            (context.try_folder / PREPARED_FOLDER / MODEL / "tokenizer.json").read_text(encoding="utf-8"),
            plan.begin_of_text_id,
            plan.end_of_text_id,
            plan.token_type,
            contamination_index(read_item_lines(folder / _ITEMS))
            if config.decontaminate
            else ContaminationIndex(),
        )
    except (ContractError, FileNotFoundError):
        if not (folder / _PLAN).is_file():
            return ReadingPlan()  # the first pod has read everything, and removed the folder
        raise
    # 2. Find the same files.
    problems = Problems()
    sources = find_sources(config, problems, beat)
    problems.raise_if_any()
    shared = shared_reading(config, context, form)
    if (_digest_of_slices(sources), shared.settings_digest) != (plan.slices_digest, plan.settings_digest):
        raise InfrastructureError(
            f"pod {context.rank} sees other files or another tokenizer than the first pod: the sources changed while "
            "prepare started, or the pods have different volumes; run it again"
        )
    # 3. Read what is left.
    slices = shared_slices(sources)
    progress = ReadingProgress(
        sum(entry.size_bytes for entry in slices),
        lambda label, share, tokens: context.progress.update(
            activity=f"tokenizing {label}", fraction=share, tokens=tokens
        ),
    )
    with AnalysisPool(shared.settings, beat=beat) as pool:
        read_slices(shared, slices, progress, pool, beat)
    return plan


def _digest_of_slices(sources: Sequence[CorpusSource]) -> str:
    return digest_of(
        {
            "sources": [source.files.resolved for source in sources],
            "slices": [
                [entry.name, [[part.file.path, part.first_byte, part.end_byte] for part in entry.parts]]
                for source in sources
                for entry in slices_of(source)
            ],
        }
    )
