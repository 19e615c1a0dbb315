"""Runs prepare, which turns the sources of the manifest into what all other stages read from the work volume.

It is the only stage that reads hubs and object stores. It works below its own run's folder and moves finished folders
into place at the end, `data/` with the manifest last: killed at any moment and run again, it ends with the same files.
A run that finds the manifest which an earlier one reported has nothing left to do; any other may be anybody's, so the
sources are read again.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dapt_contract.layout import DATA, EXTENDED_MODEL, HARNESS, MODEL
from dapt_contract.stages.prepare import (
    ModelFacts,
    PrepareConfig,
    PrepareReport,
    TokenizerExtensionConfig,
)
from dapt_contract.stages.tuning_data import TuningDataReport
from dapt_contract.untrusted.folders import remove_folder, run_folders
from dapt_trainer.context import StageContext
from dapt_trainer.data.base_model.check import check_base_model
from dapt_trainer.data.base_model.facts import (
    TokenizerDescription,
    read_model_facts,
    read_tokenizer,
    sequence_length,
)
from dapt_trainer.data.base_model.fetch import import_model
from dapt_trainer.data.base_model.files import FACTS
from dapt_trainer.data.base_model.tokenizer_trial import try_tokenizer
from dapt_trainer.data.choose_held_out import Corpus, choose_sides, limits_of, write_choices
from dapt_trainer.data.corpus_reading import (
    PREPARED_FOLDER,
    SPOOL,
    ReadingPlan,
    StoredForm,
    help_to_read,
    read_corpus,
    shared_reading,
    write_plan,
)
from dapt_trainer.data.dedup.contamination import ContaminationIndex, EvaluationItem, contamination_index
from dapt_trainer.data.disk_space import check_space
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.pack_source import PackedSource, PackingRules, pack_source
from dapt_trainer.data.packing.data_manifest import DataManifest, TokenType, finished_manifest, write_manifest
from dapt_trainer.data.packing.prepared_files import digests_of_files
from dapt_trainer.data.plain_tokenizer import plain_tokenizer
from dapt_trainer.data.renewed_items import can_be_kept, with_current_items
from dapt_trainer.data.results.move_into_place import move_into_place
from dapt_trainer.data.results.reporting import PreparedData, RunNotes, check_size, report_of
from dapt_trainer.data.slices.cut import CorpusSource
from dapt_trainer.data.slices.held_out_checks import HeldOutChecks, HeldOutText
from dapt_trainer.data.stage_inputs import (
    check_sources,
    find_sources,
    harness_has_all_tasks,
    read_evaluation,
    write_evaluation,
)
from dapt_trainer.data.tuning_data import TuningModel, prepare_or_check
from dapt_trainer.errors import InfrastructureError, InputError, StopRequested
from dapt_trainer.tokenization.grow_in_prepare import check_model, grow

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Shares of the stage that are done when a step begins, by how long steps usually take.
_READING_BEGINS = 0.1
_READING_FRACTION = 0.7
_PACKING_BEGINS, _PACKING_ENDS = 0.8, 0.95


def run(config: PrepareConfig, context: StageContext) -> PrepareReport | ReadingPlan:
    """Prepare everything, and report all problems of the input at once.

    Of several pods the first does so; the others only read the corpus with it, and return what they read it by.

    Raises:
        InputError: what the user must correct.
        InfrastructureError: the work volume is full.
        StopRequested: SIGTERM.
    """
    notes = RunNotes()
    preparation = _Preparation(config, context, notes)
    try:
        if context.rank > 0:
            return help_to_read(config, context, preparation.heartbeat)
        finished = finished_manifest(context.work, config.corpus_digest)
        if finished is not None and can_be_kept(finished, config, context, notes, preparation.heartbeat):
            return with_current_items(finished, config, context, preparation.heartbeat)
        return preparation.run()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InfrastructureError(
            f"{context.work}: the work volume is full ({error.strerror}); enlarge it, or lower maxTokens"
        ) from error


@dataclass(frozen=True)
class _BaseModel:
    """Describes the imported model, its tokenizer, and how documents are stored in its tokens."""

    facts: ModelFacts
    tokenizer: TokenizerDescription
    sequence_length_tokens: int
    token_type: TokenType


class _Preparation:
    """Runs the steps of one preparation below the run's own folder."""

    def __init__(self, config: PrepareConfig, context: StageContext, notes: RunNotes) -> None:
        self._config = config
        self._context = context
        self._problems = Problems()
        self._notes = notes
        self._folder = context.try_folder / PREPARED_FOLDER
        self._scratch = context.try_folder / "scratch"
        self._spool = context.try_folder / SPOOL

    def run(self) -> PrepareReport:
        try:
            report = self._run()
        except InputError:
            self._remove_leftovers(SPOOL)
            raise
        finally:
            # What is read of the corpus stays where the run was only interrupted: the next one continues from there.
            self._remove_leftovers(self._folder.name, self._scratch.name)
        self._remove_leftovers(SPOOL)
        return report

    def _run(self) -> PrepareReport:
        config = self._config
        for folder in (self._folder, self._scratch, self._spool):
            remove_folder(folder)
            folder.mkdir(parents=True)

        # 1. Check the names of tasks first: it takes seconds, while the model and the corpus may be large.
        with self._step("checking the names of tasks", 0.0):
            has_all_tasks = harness_has_all_tasks(config, self._scratch, self._problems, self.heartbeat)

        # 2. Read every other input, so that the user sees the problems of all of them after one run.
        with self._step("reading the base model", 0.0):
            model = self._import_model() if has_all_tasks else None
        with self._step("finding the sources", 0.05):
            sources = find_sources(config, self._problems, self.heartbeat)
        with self._step("reading evaluation and tuning data", 0.08):
            harness_folder = self._folder / HARNESS if has_all_tasks else None
            tokenizer_json = model.tokenizer.tokenizer_json if model is not None else None
            evaluation = read_evaluation(
                config, harness_folder, self._scratch, self._problems, self.heartbeat, tokenizer_json
            )
            contamination = (
                contamination_index(evaluation.items) if config.decontaminate else ContaminationIndex()
            )
            tuning_data = self._prepare_tuning_data(model, contamination)
        for report in tuning_data:
            self._notes.resolved += report.resolved_sources
            self._notes.warnings += report.warnings
        if not has_all_tasks:
            raise InputError(*self._problems.sentences())
        if model is None or self._problems:
            with self._step("checking the corpus", _READING_BEGINS):
                check_sources(sources, config, self._problems, self.heartbeat)
            raise InputError(*self._problems.sentences())
        self._notes.add_sources(sources)
        self._notes.resolved += evaluation.resolved

        # 3. Tokenize the corpus and choose what is held out.
        with self._step("reading and tokenizing the corpus", _READING_BEGINS):
            corpus = self._read_corpus(model, sources, contamination, evaluation.items)
        self._problems.raise_if_any()

        # 4. Extend the tokenizer on the training text alone, and tokenize the corpus again.
        if config.tokenizer_extension is not None:
            with self._step("growing the tokenizer", 0.78):
                model, corpus = self._extend_tokenizer(model, config.tokenizer_extension, corpus)

        # 5. Pack the training text into shards.
        with self._step("packing", _PACKING_BEGINS):
            packed = self._pack(model, corpus)
        check_size(packed, model.sequence_length_tokens, config.global_batch_size, self._problems)

        # 6. Write the rest, and move everything into place.
        with self._step("finishing", _PACKING_ENDS):
            data = PreparedData(
                model.facts,
                model.sequence_length_tokens,
                evaluation,
                tuple(report.facts for report in tuning_data),
                contamination,
                corpus,
                packed,
            )
            return self._finish(model, data)

    def _remove_leftovers(self, *names: str) -> None:
        """Remove working folders of this run, and of earlier runs that were killed."""
        own_number = self._context.stage.run.try_number
        for number, folder in run_folders(self._context.try_folder.parent):
            # Never those of a later run: it may be at work already.
            if number <= own_number:
                for name in names:
                    remove_folder(folder / name)

    def _import_model(self) -> _BaseModel | None:
        """Import the base model and describe it; report its problems and return None when there are any."""
        config, source = self._config, self._config.model_source
        folder = self._folder / MODEL
        try:
            resolved = import_model(source, folder, self._scratch, self.heartbeat)
            try_tokenizer(folder, source, self.heartbeat)
            tokenizer = read_tokenizer(folder, source)
            self._notes.warnings += check_base_model(folder, tokenizer, source, self.heartbeat)
            has_template = tokenizer.has_chat_template
            facts = read_model_facts(folder, resolved, has_chat_template=has_template, beat=self.heartbeat)
            length = sequence_length(config.sequence_length_tokens, facts)
            if config.tokenizer_extension is not None:
                check_model(folder, tokenizer.vocabulary_size, source, self.heartbeat)
            space_warning = check_space(self._context.work, facts, config)
        except InputError as error:
            self._problems.add_error(error)
            return None
        if space_warning:
            self._notes.warnings.append(space_warning)
        self._notes.resolved.append((source, resolved))
        (folder / FACTS).write_text(facts.model_dump_json(indent=1) + "\n")
        token_type: TokenType = "uint16" if tokenizer.vocabulary_size <= 1 << 16 else "uint32"
        return _BaseModel(facts, tokenizer, length, token_type)

    def _prepare_tuning_data(
        self, model: _BaseModel | None, contamination: ContaminationIndex
    ) -> list[TuningDataReport]:
        """Read, render and write the tuning data; report its problems. Without a model it is only checked."""
        configs, tuning_model = self._config.tuning_data, None
        if model is not None and configs:
            try:
                tuning_model = TuningModel.of_folder(
                    self._folder / MODEL,
                    model.tokenizer.end_of_text,
                    packed_tokens=model.sequence_length_tokens,
                    max_positions=model.facts.max_positions,
                )
            except InputError as error:
                self._problems.add_error(error)
        reports = [
            prepare_or_check(
                config, tuning_model, contamination, self._folder, self._problems, self.heartbeat
            )
            for config in configs
        ]
        return [report for report in reports if report is not None]

    def _read_corpus(
        self,
        model: _BaseModel,
        sources: list[CorpusSource],
        contamination: ContaminationIndex,
        items: Sequence[EvaluationItem],
    ) -> Corpus:
        """Tokenize all sources and choose what is held out; report their problems."""
        form = StoredForm.of(model.tokenizer, model.token_type, contamination)
        shared = shared_reading(self._config, self._context, form)
        if self._context.world_size > 1:
            write_plan(self._context, form, shared, sources, items)

        def show(activity: str, share: float, tokens: int | None) -> None:
            self._show(activity, _READING_BEGINS + _READING_FRACTION * share, tokens=tokens)

        memory = self._config.memory_bytes
        read = read_corpus(shared, sources, self._problems, show, self.heartbeat, memory)
        if not self._problems:
            # Now that both sides are read; a side that is too small is one more problem.
            tokenizer = plain_tokenizer(model.tokenizer.tokenizer_json)
            limits = limits_of(self._config, read.corpus, model.sequence_length_tokens)
            choose_sides(read.sides, read.corpus, tokenizer, limits, self._problems)
        return read.corpus

    def _extend_tokenizer(
        self, model: _BaseModel, extension: TokenizerExtensionConfig, corpus: Corpus
    ) -> tuple[_BaseModel, Corpus]:
        """Write the model with the extended tokenizer, and return the corpus in its tokens."""
        grown = grow(
            self._folder, extension, corpus, model.tokenizer, self._config.model_source, self.heartbeat
        )
        self._notes.warnings += grown.warnings
        self._notes.tokenizer = grown.facts
        return replace(model, token_type=grown.token_type), replace(corpus, spooled=grown.spooled)

    def _pack(self, model: _BaseModel, corpus: Corpus) -> list[PackedSource]:
        rules = PackingRules(
            corpus.held_out_keys,
            model.sequence_length_tokens,
            model.token_type,
            model.tokenizer.end_of_text_id,
        )
        held_out_text = HeldOutText(corpus.held_out_shingles, self._scored_tokenizers()[-1].decode)
        packed = []
        with HeldOutChecks(held_out_text, self.heartbeat) as checks:
            for number, spool in enumerate(corpus.spooled):

                def progress(fraction: float, name: str = spool.label, number: int = number) -> None:
                    done = (number + fraction) / len(corpus.spooled)
                    # So weighted that the last one is exactly the end: a sum of the begin and a share may pass it.
                    self._show(f"packing {name}", (1.0 - done) * _PACKING_BEGINS + done * _PACKING_ENDS)

                chosen = corpus.choices[spool.side].chosen
                held_out = {candidate.document for candidate, _ in chosen if candidate.source == spool.index}
                folder = self._folder / DATA / spool.name
                packed.append(pack_source(spool, folder, rules, checks, held_out=held_out, progress=progress))
        return packed

    def _finish(self, model: _BaseModel, data: PreparedData) -> PrepareReport:
        """Write held-out text, items, tuning data and the manifest, and move all folders into place."""
        # Without a token that begins a text, nothing predicts a document's first token in training.
        has_leads = model.tokenizer.begin_of_text_id is None and self._config.document_boundaries
        write_choices(self._folder, data.corpus.choices, self._scored_tokenizers() if has_leads else [])
        write_evaluation(self._folder, data.evaluation)
        manifest = DataManifest(
            config_digest=self._config.corpus_digest,
            inputs_digest=self._config.inputs_digest,
            data_digest="",
            sequence_length_tokens=model.sequence_length_tokens,
            token_type=model.token_type,
            end_of_text_id=model.tokenizer.end_of_text_id,
            begin_of_text_id=model.tokenizer.begin_of_text_id,
            document_boundaries=self._config.document_boundaries,
            shards=data.shards,
            # Every file must be written by now.
            files=tuple(digests_of_files(self._folder).items()),
            report=report_of(self._config, data, self._notes),
        ).with_digest()
        write_manifest(self._folder / DATA, manifest, run_key=self._context.stage.run.key)
        move_into_place(self._folder, self._context.work, self._scratch)
        return manifest.report

    def _scored_tokenizers(self) -> list[Tokenizer]:
        """Return the tokenizer of the base model, and the extended one behind it."""
        folders = [MODEL] if self._config.tokenizer_extension is None else [MODEL, EXTENDED_MODEL]
        return [
            plain_tokenizer((self._folder / folder / "tokenizer.json").read_text(encoding="utf-8"))
            for folder in folders
        ]

    def heartbeat(self) -> None:
        """Send a heartbeat.

        Raises:
            StopRequested: SIGTERM; every step calls this method often, so it is where the stage stops.
        """
        if self._context.progress.stop_requested():
            raise StopRequested(
                "prepare was stopped before it finished; the next run reads the rest of the corpus"
            )
        self._context.progress.heartbeat()

    def _show(self, activity: str, fraction: float, tokens: int | None = None) -> None:
        self.heartbeat()
        self._context.progress.update(activity=activity, fraction=min(1.0, fraction), tokens=tokens)

    @contextmanager
    def _step(self, activity: str, fraction: float) -> Iterator[None]:
        self._show(activity, fraction)
        started = time.monotonic()
        yield
        self._notes.seconds[activity] = time.monotonic() - started
