"""One sentence on what a finished stage came to, from the facts that the planner keeps in the status. Pure."""

from __future__ import annotations

from dapt_contract.base import Contract
from dapt_contract.metric import Measure
from dapt_contract.stages.align import AlignFacts
from dapt_contract.stages.blend import BlendFacts
from dapt_contract.stages.evaluate import BaselineFacts, EvaluateFacts, VerifyFacts
from dapt_contract.stages.finetune import FinetuneFacts
from dapt_contract.stages.prepare import PrepareFacts
from dapt_contract.stages.pretrain import PretrainFacts
from dapt_contract.stages.publish import PublishFacts
from dapt_operator.api.status import DomainAdaptationStatus, StageStatus
from dapt_operator.cli.words import count, perplexity, plural, size
from dapt_operator.plan.history import facts_of, find


def stage_note(status: DomainAdaptationStatus, stage: StageStatus) -> str:
    """What a stage came to; its own message when it has one, empty when nothing is known."""
    if stage.message or status.ledger is None:
        return stage.message or ""
    record = find(status.ledger, stage.name, stage.attempt, stage.candidate)
    facts = facts_of(record) if record is not None and record.state == "Succeeded" else None
    return "" if facts is None else facts_note(facts)


def facts_note(facts: Contract) -> str:
    """The sentence for one kind of facts."""
    match facts:
        case PrepareFacts():
            held_out = sum(source.held_out_tokens for source in facts.sources)
            return (
                f"{count(facts.domain_tokens)} domain and {count(facts.general_tokens)} general tokens to train on,"
                f" {count(held_out)} held out"
            )
        case BaselineFacts():
            return _measured(facts.measure)
        case EvaluateFacts():
            return _measured(facts.measure)
        case VerifyFacts():
            return _measured(facts.final)
        case PretrainFacts():
            done = f"{plural(facts.steps, 'step')}, {count(facts.tokens)} tokens"
            speed = f", {count(facts.tokens_per_second)} tokens/s" if facts.tokens_per_second else ""
            return f"{done}, {plural(len(facts.checkpoints), 'checkpoint')}{speed}"
        case FinetuneFacts():
            return (
                f"{plural(facts.steps, 'step')} on {plural(facts.examples, 'example')},"
                f" loss {facts.first_loss_nats:.3f} to {facts.last_loss_nats:.3f}"
            )
        case BlendFacts():
            return f"{plural(len(facts.rows), 'average or interpolation', 'averages and interpolations')} measured"
        case AlignFacts():
            return (
                f"{plural(facts.steps, 'step')} on {plural(facts.pairs, 'pair')},"
                f" loss {facts.first_loss_nats:.3f} to {facts.last_loss_nats:.3f},"
                f" {100 * facts.reward_accuracy:.0f} % of pairs in the right order at the end"
            )
        case PublishFacts():
            return f"{plural(facts.files, 'file')}, {size(facts.size_bytes)}"
    return ""


def _measured(measure: Measure) -> str:
    return (
        f"perplexity domain {perplexity(measure.domain.both.perplexity)},"
        f" general {perplexity(measure.general.both.perplexity)}"
    )
