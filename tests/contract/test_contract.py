"""The contract: additive files, messages that always fit, one order of causes, one stop rule."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from dapt_contract.base import LARGEST_COUNT, Contract
from dapt_contract.envelope import ContractError, digest_of, read_envelope, write_envelope
from dapt_contract.measure import Measure, Perplexity, Score, Side, SidePerplexity, error_of_row
from dapt_contract.pod.failure import PRECEDENCE, Cause, cause_of_exit_code, first_cause
from dapt_contract.pod.message import MAX_MESSAGE_BYTES, RunEnd, decode_message, encode_message
from dapt_contract.run_identity import RunIdentity
from dapt_contract.signature import SIGNING_KEY_BYTES
from dapt_contract.stage_file import StageFile, digest_of_work, find_report, finished_report, write_report
from dapt_contract.stages import KINDS
from dapt_contract.stages.align import AlignFacts
from dapt_contract.stages.baseline import BaselineFacts
from dapt_contract.stages.blend import MAX_BLENDS, BlendConfig, BlendFacts, BlendRow
from dapt_contract.stages.common import ProbeConfig, TaskConfig
from dapt_contract.stages.destination import DestinationFacts
from dapt_contract.stages.evaluate import EvaluateConfig, EvaluateFacts, EvaluateReport
from dapt_contract.stages.finetune import FinetuneFacts
from dapt_contract.stages.prepare import (
    ModelFacts,
    PrepareConfig,
    PrepareFacts,
    SourceFacts,
    TextSource,
    TokenizerFacts,
    TrainingLength,
)
from dapt_contract.stages.pretrain import CheckpointFacts, PretrainFacts
from dapt_contract.stages.publish import PublishFacts
from dapt_contract.stages.tuning_data import SHOWN_DIGITS, TuningDataConfig, TuningDataFacts, data_folder
from dapt_contract.stages.verify import VerifyFacts
from dapt_contract.stop_rule import StopRule, StopVerdict, judge_readings

KEY = "f" * 64
SIDES: tuple[Side, ...] = ("domain", "general")
DIGEST = "sha256:" + "a" * 64


def largest_measure() -> Measure:
    part = Perplexity(
        nll_nats=123456789.123456, tokens=999_999_999_999, bytes=9_999_999_999_999,
        difference_standard_error_nats=0.0123456789,
    )  # fmt: skip
    side = SidePerplexity(a=part, b=part)
    scores = tuple(
        Score(
            name=f"{index:040d}", side="general", kind="probe", items=99_999, score=0.12345678,
            standard_error=0.01234567,
            difference=-0.12345678, difference_standard_error=0.12345678, score_a=0.12345678, difference_b=-0.12345678,
            difference_b_standard_error=0.12345678,
        )
        for index in range(20)
    )  # fmt: skip
    return Measure(digest=DIGEST, domain=side, general=side, scores=scores)


def largest_facts() -> dict[str, Contract]:
    model = ModelFacts(
        architecture="A" * 40, parameters=10**12, hidden_size=99_999, layers=999, vocabulary_size=999_999,
        attention_heads=999, key_value_heads=999, intermediate_size=999_999, max_positions=9_999_999,
        tied_embeddings=True, has_chat_template=True, revision="r" * 64, digest=DIGEST, weights_bytes=10**13,
    )  # fmt: skip
    source = SourceFacts(
        side="general", index=9, documents=10**9, train_tokens=10**12, sequences=10**9, duplicates=10**8,
        contaminated=10**8, empty=10**8, bad_records=10**8, held_out_documents=10**6, held_out_tokens=10**6,
        cut_documents=10**8, fill_fraction=0.99912345, weight=0.123456,
    )  # fmt: skip
    rows = tuple(
        CheckpointFacts(
            step=10**6 + index, try_number=99, domain_a_nats=12.3456789, domain_b_nats=1.23456789,
            general_a_nats=1.23456789, general_b_nats=1.23456789, weights_digest="a" * 12, domain_b_error=999,
            general_b_error=999,
        )
        for index in range(50)
    )  # fmt: skip
    measure = largest_measure()
    tuning_data = TuningDataFacts(
        kind="instructions", config_digest="a" * 12, records=10**9, data_digest="a" * 64, bad_records=10**8,
        contaminated=10**8, repeats=10**8, without_response=10**8, equal_pairs=10**8, tokens=10**12,
    )  # fmt: skip
    return {
        "prepare": PrepareFacts(
            model=model, sources=(source,) * 20, sequence_length_tokens=131_072, domain_tokens=10**12,
            general_tokens=10**12, data_digest=DIGEST, warnings=("w" * 500,) * 30,
            tuning_data=(tuning_data, tuning_data), task_items=(("t" * 40, 10**5),) * 20,
        ),
        "tuning_data": tuning_data,
        "destination": DestinationFacts(destination="d" * 512, found="empty"),
        "baseline": BaselineFacts(measure=measure),
        "pretrain": PretrainFacts(
            ended_by="ForgettingLimit", message="m" * 160, steps=10**6, tokens=10**12, checkpoints=rows,
            tokens_per_second=123456.789, step_seconds_median=12.3456789, peak_memory_bytes=10**12,
        ),
        "evaluate": EvaluateFacts(candidate="a10-s1000000-i0.85", measure=measure),
        "verify": VerifyFacts(final=measure, digests=(("base", DIGEST), ("chosen", DIGEST), ("final", DIGEST))),
        "finetune": FinetuneFacts(
            model={"weights": "w" * 200, "adapters": ["a" * 200] * 4}, weights_digest=DIGEST, steps=10**6,
            examples=10**7, response_tokens=10**9, first_loss_nats=9.87654321, last_loss_nats=1.23456789,
        ),
        "blend": BlendFacts(
            rows=tuple(
                BlendRow(
                    candidate=f"a10-s1000000-i0.{index:02d}", weights_digest="a" * 12, domain_a_nats=12.3456789,
                    domain_b_nats=1.23456789, general_a_nats=1.23456789, general_b_nats=1.23456789,
                    domain_b_error=9999, general_b_error=9999,
                )
                for index in range(MAX_BLENDS)
            )
        ),
        "align": AlignFacts(
            model={"weights": "w" * 200, "adapters": ["a" * 200] * 4}, weights_digest=DIGEST, steps=10**6,
            pairs=10**7, first_loss_nats=9.87654321, last_loss_nats=1.23456789, reward_accuracy=0.99912345,
            reward_margin=12.3456789,
        ),
        "publish": PublishFacts(destination="d" * 512, digest=DIGEST, files=10**4, size_bytes=10**13),
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_legal_message_of_each_kind_fits_and_reads_back(kind: str) -> None:
    facts = largest_facts()[kind]
    text = encode_message(KEY, kind, RunEnd(76, Cause.FORGETTING_LIMIT, "s" * 5000), facts=facts)
    assert len(text.encode()) <= MAX_MESSAGE_BYTES
    read = decode_message(text)
    assert read.cause is Cause.FORGETTING_LIMIT
    parsed = read.parsed_facts()
    assert type(parsed) is type(facts)
    if isinstance(parsed, PrepareFacts):
        shown = largest_facts()["tuning_data"].model_copy(update={"data_digest": "a" * SHOWN_DIGITS})
        assert parsed.tuning_data == (shown,) * 2
    if isinstance(parsed, PretrainFacts):
        assert len(parsed.checkpoints) == 50
        assert parsed.checkpoints[49].domain_b_nats == 1.23457
        assert all(row.general_b_error == 999 for row in parsed.checkpoints)
    if isinstance(parsed, EvaluateFacts):
        assert parsed.measure.scores[19].difference_b == -0.123457


def test_a_full_message_drops_the_standard_errors_of_the_oldest_checkpoints_alone() -> None:
    facts = largest_facts()["pretrain"]
    assert isinstance(facts, PretrainFacts)
    rows = tuple(
        row.model_copy(update={"domain_b_error": 9999, "general_b_error": 9999}) for row in facts.checkpoints
    )
    text = encode_message(KEY, "pretrain", facts=facts.model_copy(update={"checkpoints": rows}))
    read = decode_message(text).parsed_facts()
    assert isinstance(read, PretrainFacts)
    known = [row.general_b_error for row in read.checkpoints]
    assert known == sorted(known, key=lambda error: error is not None)
    assert known.count(9999) >= 40
    assert read.checkpoints[0].general_b_nats == 1.23457


def test_fields_that_old_files_lack_change_no_digest_and_no_signature_while_they_are_none() -> None:
    part = Perplexity(nll_nats=1.0, tokens=1, bytes=1)
    assert part.model_dump(mode="json") == {"nll_nats": 1.0, "tokens": 1, "bytes": 1}
    paired = part.model_copy(update={"difference_standard_error_nats": 0.5})
    assert Perplexity.model_validate(paired.model_dump(mode="json")) == paired
    config = BlendConfig(blends=(), context_length_tokens=8)
    assert digest_of_work(config) == digest_of(
        config.model_dump(mode="json", exclude={"base_losses_digest", "keeps", "spread"})
    )
    paired_config = config.model_copy(update={"base_losses_digest": "d"})
    assert digest_of_work(paired_config) != digest_of_work(config)


def test_the_error_of_both_halves_is_that_of_strata_and_rows_round_it_up() -> None:
    a = Perplexity(nll_nats=300.0, tokens=300, bytes=1, difference_standard_error_nats=0.02)
    b = Perplexity(nll_nats=100.0, tokens=100, bytes=1, difference_standard_error_nats=0.04)
    both = (a + b).difference_standard_error_nats
    assert both == pytest.approx(math.hypot(0.75 * 0.02, 0.25 * 0.04))
    assert (a + Perplexity(nll_nats=1.0, tokens=1, bytes=1)).difference_standard_error_nats is None
    assert a.model_copy(update={"difference_standard_error_nats": 0.01231}).row_error == 124
    assert a.model_copy(update={"difference_standard_error_nats": 1e9}).row_error == 9999
    assert error_of_row(124) == 0.0124
    assert error_of_row(None) is None


def test_a_prepare_with_every_field_at_its_bound_fits_with_its_sources_summed() -> None:
    counts = dict.fromkeys(
        [
            "documents",
            "train_tokens",
            "sequences",
            "duplicates",
            "contaminated",
            "empty",
            "bad_records",
            "held_out_documents",
            "held_out_tokens",
            "cut_documents",
        ],
        LARGEST_COUNT // 10,
    )
    sources = tuple(
        SourceFacts(side=side, index=index, weight=1.23457e9, fill_fraction=0.912345, **counts)
        for side in SIDES
        for index in range(10)
    )
    numbers = dict.fromkeys(
        [
            "parameters",
            "hidden_size",
            "layers",
            "vocabulary_size",
            "attention_heads",
            "key_value_heads",
            "intermediate_size",
            "max_positions",
            "weights_bytes",
            "added_tokens",
            "head_size",
            "linear_dimensions",
        ],
        LARGEST_COUNT,
    )
    model = ModelFacts(
        architecture="A" * 253, revision="r" * 128, digest="d" * 128, tied_embeddings=True, has_chat_template=True,
        gated_mlp=False, **numbers,
    )  # fmt: skip
    words = dict.fromkeys(
        (f"{side}_tokens_per_word_{when}" for side in SIDES for when in ("before", "after")), 1.23457e9
    )
    facts = PrepareFacts(
        model=model, sources=sources, sequence_length_tokens=LARGEST_COUNT, domain_tokens=LARGEST_COUNT,
        general_tokens=LARGEST_COUNT, instruction_examples=LARGEST_COUNT, preference_pairs=LARGEST_COUNT,
        near_duplicates=LARGEST_COUNT, tokenizer=TokenizerFacts(added_tokens=LARGEST_COUNT, **words),
        data_digest="d" * 128, tuning_data=(largest_facts()["tuning_data"],) * 2, warnings=("w" * 500,) * 30,
    )  # fmt: skip
    text = encode_message(KEY, "prepare", RunEnd(message="s" * 5000), facts=facts)
    assert len(text.encode()) <= MAX_MESSAGE_BYTES
    read = decode_message(text).parsed_facts()
    assert isinstance(read, PrepareFacts)
    assert [(source.side, source.held_out_tokens) for source in read.sources] == [
        (side, LARGEST_COUNT) for side in SIDES
    ]
    assert read.sources[0].fill_fraction == 0.912345
    assert read.model == model
    assert read.warnings[-1].startswith("more warnings in its report: ")


@pytest.mark.parametrize(
    "hostile", ["", "[]", "{}", "null", '{"key": 1}', "x" * 5000, '{"key":"k","kind":"k","cause":"?"}']
)
def test_a_hostile_message_is_refused(hostile: str) -> None:
    with pytest.raises(ContractError):
        decode_message(hostile)


def test_facts_of_another_kind_are_refused() -> None:
    read = decode_message('{"key":"k","kind":"publish","facts":{"destination":5}}')
    with pytest.raises(ContractError, match="termination message of publish"):
        read.parsed_facts()


def test_an_old_reader_takes_a_new_row_and_a_new_reader_an_old_one() -> None:
    newer = Perplexity.model_validate([10.0, 4, 20, 0.5, "a field of a later version"])
    assert newer.tokens == 4
    older = Score.model_validate(["mmlu", "general", "task", 100, 0.5, 0.05])
    assert older.difference is None


def test_an_old_reader_takes_a_new_file_of_the_same_version(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_envelope(path, "dapt.test", Perplexity(nll_nats=1.0, tokens=2, bytes=3), run_key=KEY)
    content = json.loads(path.read_text())
    content["later"] = 1
    content["body"]["later"] = 2
    path.write_text(json.dumps(content))
    envelope, body = read_envelope(path, "dapt.test", Perplexity)
    assert (envelope.run_key, body.tokens) == (KEY, 2)


def test_a_file_of_a_newer_version_or_another_schema_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_envelope(path, "dapt.test", Perplexity(nll_nats=1.0, tokens=2, bytes=3), version=2)
    with pytest.raises(
        ContractError, match=r"dapt\.test version 2 is newer than this program reads \(1\); upgrade dapt"
    ):
        read_envelope(path, "dapt.test", Perplexity)
    with pytest.raises(ContractError, match=r"holds dapt\.test, expected dapt\.other"):
        read_envelope(path, "dapt.other", Perplexity)


def stage(try_number: int = 1, candidate: str = "a1-s5") -> StageFile:
    identity = RunIdentity(
        namespace="n",
        name="x",
        uid="u",
        stage="evaluate",
        attempt=1,
        candidate=candidate,
        try_number=try_number,
        fence=try_number,
    )
    config = EvaluateConfig(
        candidate=candidate,
        model={"weights": "model"},
        evaluation={"context_length_tokens": 8},
        base_items_path="b",
    )
    return StageFile(run=identity, kind="evaluate", config=config)


def test_a_stage_file_reads_back_as_the_same_work() -> None:
    written = stage()
    read = StageFile.model_validate_json(written.model_dump_json())
    assert read == written
    assert read.config_digest == stage(try_number=2).config_digest
    assert read.config_digest != stage(candidate="a1-s9").config_digest


def test_finished_report_is_found_only_by_a_later_run_of_the_same_work(tmp_path: Path) -> None:
    report = EvaluateReport(facts=EvaluateFacts(candidate="a1-s5", measure=largest_measure()))
    key = bytes(SIGNING_KEY_BYTES)
    write_report(tmp_path, stage(), report, key=key)
    assert finished_report(tmp_path, stage(try_number=3), key=key) == report
    assert finished_report(tmp_path, stage(candidate="a1-s9"), key=key) is None
    assert find_report(tmp_path, "stages/evaluate-a1-a1-s5", "evaluate") == report


def test_finished_report_that_no_key_signs_is_nobodys(tmp_path: Path) -> None:
    write_report(
        tmp_path, stage(), EvaluateReport(facts=EvaluateFacts(candidate="a1-s5", measure=largest_measure()))
    )
    assert finished_report(tmp_path, stage(try_number=2)) is None


def test_a_truncated_report_is_ignored(tmp_path: Path) -> None:
    report, key = (
        EvaluateReport(facts=EvaluateFacts(candidate="a1-s5", measure=largest_measure())),
        bytes(SIGNING_KEY_BYTES),
    )
    write_report(tmp_path, stage(), report, key=key)
    path = next(tmp_path.glob("stages/*/try-1/report.json"))
    path.write_text(path.read_text()[:100])
    assert finished_report(tmp_path, stage(), key=key) is None


def test_precedence_lists_every_cause_and_the_first_counts() -> None:
    assert set(PRECEDENCE) == set(Cause)
    assert first_cause([Cause.CRASH, Cause.INFRASTRUCTURE, Cause.OUT_OF_MEMORY]) is Cause.OUT_OF_MEMORY
    assert first_cause([]) is None


@pytest.mark.parametrize(
    ("code", "cause"),
    [(0, None), (64, Cause.BAD_INPUT), (70, Cause.OUT_OF_MEMORY), (75, Cause.INFRASTRUCTURE),
     (76, Cause.FORGETTING_LIMIT),
     (77, Cause.DIVERGED), (137, Cause.INFRASTRUCTURE), (143, Cause.STOPPED), (1, Cause.CRASH), (200, Cause.CRASH)],
)  # fmt: skip
def test_each_exit_code_has_one_cause(code: int, cause: Cause | None) -> None:
    assert cause_of_exit_code(code) is cause
    if code:
        assert cause_of_exit_code(code, oom_killed=True) is Cause.OUT_OF_MEMORY


RULE = StopRule(max_increase_fraction=0.15, patience=2, hard_stop_factor=4.0)


@pytest.mark.parametrize(
    ("increases", "verdict"),
    [
        ([], StopVerdict.CONTINUE),
        ([0.20], StopVerdict.CONTINUE),  # one reading means little while the rate is high
        (
            [0.265, 0.248, 0.22, 0.153, 0.136],
            StopVerdict.CONTINUE,
        ),  # 25 % replay in the pilot: falls and ends below
        (
            [0.20, 0.22, 0.23, 0.21, 0.20, 0.19],
            StopVerdict.CONTINUE,
        ),  # ended at +13 % (docs/science.md, gates)
        ([0.35, 0.35], StopVerdict.FORGETTING_LIMIT),
        ([0.35, 0.45], StopVerdict.FORGETTING_LIMIT),
        ([0.35, 0.29, 0.35], StopVerdict.CONTINUE),
        ([0.61], StopVerdict.FORGETTING_LIMIT),  # past the hard stop at once
        ([0.10, 0.20], StopVerdict.CONTINUE),
        ([0.1, float("nan")], StopVerdict.DIVERGED),
        ([float("inf")], StopVerdict.DIVERGED),
    ],
)
def test_the_stop_rule_waits_for_patience_below_the_hard_stop(
    increases: list[float], verdict: StopVerdict
) -> None:
    readings = [20.0 * (1 + value) for value in increases]
    assert judge_readings(RULE, 20.0, readings).verdict is verdict


def test_without_an_enforced_limit_only_divergence_stops() -> None:
    rule = RULE.model_copy(update={"enforce_limit": False})
    assert judge_readings(rule, 20.0, [100.0, 200.0]).verdict is StopVerdict.CONTINUE
    assert judge_readings(rule, 20.0, [float("nan")]).verdict is StopVerdict.DIVERGED


def test_the_stop_message_names_increase_threshold_and_patience() -> None:
    decision = judge_readings(RULE, 10.0, [14.0, 14.5])
    assert decision.message == (
        "general perplexity is +45.0% over the base model's, above +30.0%, twice the limit, "
        "at 2 checkpoints in a row and not falling"
    )


@pytest.mark.parametrize(
    "increases",
    [
        [
            0.265,
            0.248,
            0.22,
            0.153,
            0.136,
        ],  # 25 % replay in the pilot: over the limit at four readings, always falling
        [0.185, 0.168, 0.12, 0.067, 0.052],
    ],
)
def test_a_healthy_run_that_is_over_the_limit_but_falling_is_never_stopped(increases: list[float]) -> None:
    readings = [20.0 * (1 + value) for value in increases]
    for count in range(1, len(readings) + 1):
        assert judge_readings(RULE, 20.0, readings[:count]).verdict is StopVerdict.CONTINUE


def test_a_fall_within_half_a_percent_does_not_count() -> None:
    assert judge_readings(RULE, 20.0, [28.0, 27.9]).verdict is StopVerdict.FORGETTING_LIMIT
    assert judge_readings(RULE, 20.0, [28.0, 27.8]).verdict is StopVerdict.CONTINUE


def prepare_config(**over: object) -> PrepareConfig:
    values: dict[str, object] = {
        "model_source": "file:///models/base",
        "domain": (TextSource(source="file:///text/domain.jsonl"),),
        "general": (TextSource(source="file:///text/general.jsonl"),),
        "tasks": (TaskConfig(name="codes", side="domain", source="file:///eval/codes.jsonl"),),
    }
    return PrepareConfig.model_validate(values | over)


ITEMS: list[dict[str, object]] = [
    {"tasks": ()},
    {"probes": (ProbeConfig(name="probes-domain-0", side="domain", source="file:///eval/p.jsonl"),)},
    {"evaluation_limit": 10},
    {"evaluation_content": (("file:///eval/codes.jsonl", "0" * 12),)},
]
CHECKED: list[dict[str, object]] = [
    {"training": TrainingLength(steps=5, checkpoints=1)},
    {"global_batch_size": 64},
    {"checkpoints_kept": 9},
    {"attempts": 3},
    {"trains_all_weights": True},
    {"precision": "fp32"},
    {"tuning_data": (TuningDataConfig(kind="preferences"),)},
]


@pytest.mark.parametrize("change", CHECKED)
def test_what_prepare_only_checks_leaves_a_finished_corpus_as_it_is(change: dict[str, object]) -> None:
    before, after = prepare_config(), prepare_config(**change)
    assert (after.corpus_digest, after.inputs_digest) == (before.corpus_digest, before.inputs_digest)


@pytest.mark.parametrize("change", ITEMS)
@pytest.mark.parametrize("decontaminate", [True, False])
def test_evaluation_items_change_the_corpus_where_it_is_cleaned_of_them(
    change: dict[str, object], decontaminate: bool
) -> None:
    before = prepare_config(decontaminate=decontaminate)
    after = prepare_config(decontaminate=decontaminate, **change)
    assert after.inputs_digest != before.inputs_digest
    assert (after.corpus_digest != before.corpus_digest) is decontaminate


@pytest.mark.parametrize(
    "change",
    [{"seed": 4}, {"domain": ()}, {"model_source": "hf://x"}, {"sequence_length_tokens": 64}, {"deduplicate": "none"}],
)  # fmt: skip
def test_sources_and_seed_decide_the_corpus(change: dict[str, object]) -> None:
    before, after = prepare_config(), prepare_config(**change)
    assert after.corpus_digest != before.corpus_digest
    assert after.inputs_digest != before.inputs_digest


def test_tuning_data_lies_in_a_folder_named_by_its_digest() -> None:
    config = TuningDataConfig(kind="preferences", content=(("file:///pairs.jsonl", "1"),))
    corrected = TuningDataConfig(kind="preferences", content=(("file:///pairs.jsonl", "2"),))
    assert config.folder == f"preferences/{config.digest}" == data_folder("preferences", config.digest)
    assert corrected.folder != config.folder


@pytest.mark.parametrize("nats", [0.0, math.inf, math.nan])
def test_broken_model_may_have_no_finite_loss_and_no_score(nats: float) -> None:
    assert repr(Perplexity(nll_nats=nats, tokens=1, bytes=1).nll_nats) == repr(nats)
    assert repr(Score(name="t", side="domain", items=1, score=nats, standard_error=nats).score) == repr(nats)


def test_mean_of_many_items_may_be_a_rounding_error_past_one() -> None:
    assert Score(name="t", side="domain", items=1, score=1 + 1e-12, standard_error=0).score > 1


def test_sum_of_two_perplexities_keeps_the_bounds_of_a_count() -> None:
    half = Perplexity(nll_nats=1.0, tokens=LARGEST_COUNT, bytes=LARGEST_COUNT)
    assert (half + half).tokens == LARGEST_COUNT
