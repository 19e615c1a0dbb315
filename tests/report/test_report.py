"""The page shows a run's results at any time, loads nothing from outside, and escapes all text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dapt_contract.sentences import shortened
from dapt_contract.stages.prepare import PrepareReport, TokenizerFacts
from dapt_contract.stages.pretrain import PretrainReport
from dapt_contract.stages.verify import Sample
from dapt_operator.cluster.local.invocations import Invocations
from dapt_operator.report import ReportError, build_report, draw_report, style
from support.hostile_texts import HOSTILE_TEXTS, assert_inert

if TYPE_CHECKING:
    from report.conftest import Run

HOSTILE = '<script>alert("x")</script> {{ 7 * 7 }} $x$ --> <img src=http://e.vil/x>'


class Text(HTMLParser):
    """Visible text, tags, and every attribute's value."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self._skip = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self._skip += tag in ("style", "title")

    def handle_endtag(self, tag: str) -> None:
        self._skip -= tag in ("style", "title")

    def handle_data(self, data: str) -> None:
        if not self._skip:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words).replace("\u202f", " "))


def page(run: Run, folder: Path) -> Text:
    return Text(build_report(run.write(folder))[0].read_text(encoding="utf-8"))


def test_page_of_a_finished_run_has_its_results(finished: Run, tmp_path: Path) -> None:
    text = page(finished, tmp_path).text
    for words in (
        "model published to file://out",
        "a1-s60 was chosen: largest gain of 5 candidates within the perplexity limit on half A;"
        " it passes the gates on half B.",
        "its domain perplexity is −34.3 % and its general perplexity +3.0 %, where the gate allows +15.0 %",
        "Fine-tuning then made the final model: domain perplexity −29.5 %, general perplexity +9.4 %",
        "22.20 → 15.64 (final model)",
        "passes : general perplexity of a1-s60 on half B is +3.0 % against the base model's, within the limit of"
        " +15.0 %",
        "task codes (domain) 120 31.0 ± 4.2 32.0 (+1.0 ± 2.1) 47.0 (+16.0 ± 2.1) better by 7.6 standard errors",
        "task facts (general) 60 45.0 ± 6.4 44.0 (−1.0 ± 2.1) 43.0 (−2.0 ± 2.1) no change beyond noise",
        "E11.9",
        "domain[0] (icd.jsonl) 900 60,211 55,296 61 (4,000 tokens) 17 4 0 3 99.8 %",
        "On both sides, so trained on on both and held out of neither: 5 in domain[0], 5 in general[0]."
        " Short and within a held-out document, so not trained on: 1,200 in general[0].",
        "60 steps at 243 tokens per second",
        "14 min 00 s no restart after a fault",
        "134,515,008",
        "under 100 M domain tokens: consider retrieval instead",
        "the base model has a chat template: continued pre-training costs the chat ability",
        "yes, within the limits in its model card",
    ):
        assert words in text
    assert "Gates: " not in text  # each gate speaks for itself in the list
    assert "yet" not in text


@pytest.mark.usefixtures("without_pictures")
def test_every_candidate_shows_the_verdict_of_each_gate(finished: Run, tmp_path: Path) -> None:
    text = page(finished, tmp_path).text
    assert "a1-s12 18.17 (−18.1 %) 19.11 (+5.1 %) 0.200 ✓ passes not judged ✗ fails" in text
    assert "a1-s60 (chosen) 14.59 (−34.3 %) 18.73 (+3.0 %) 0.420 ✓ passes ✓ passes ✓ passes" in text


def rolled_back(run: Run) -> Run:
    """Return the run with an earlier attempt that forgot too much, and with an average."""
    early = [
        {"id": f"a1-s{step}", "attempt": 1, "step": step, "forgetting": rise, "gain": 0.5, "passes": False}
        for step, rise in ((12, 0.4), (24, 0.7))
    ]
    later = [{**one, "id": one["id"].replace("a1", "a2"), "attempt": 2} for one in run.status["candidates"]]
    blend = {"id": "a2-avg3", "attempt": 2, "forgetting": 0.02, "gain": 0.4, "passes": True}
    run.status |= {
        "attempt": 2,
        "attempts": [
            {
                "number": 1, "learningRate": 2.5e-2, "replayFraction": 0.0, "endedBy": "ForgettingLimit",
                "reason": "general perplexity is +70.0% over the base model's",
            },
            {"number": 2, "learningRate": 2.5e-3, "replayFraction": 0.0, "endedBy": "Completed"},
        ],
        "candidates": [*early, *later, blend],
        "selected": {"id": "a2-avg3", "reason": "largest gain of 6 candidates within the perplexity limit on half A;"
            " it passes the gates on half B"},
    }  # fmt: skip
    return run


def test_page_shows_the_attempts_of_a_rollback(finished: Run, tmp_path: Path) -> None:
    written = build_report(rolled_back(finished).write(tmp_path))
    assert {"trade.png", "attempts.png"} <= {path.name for path in written}
    read = Text(written[0].read_text(encoding="utf-8"))
    assert (
        "1 0.025 0.0 % the base model stopped: it forgot too much general perplexity is +70.0% over the base model's"
        " 2 0.0025 0.0 % the base model ran to its end"
    ) in read.text
    pictures = [value for name, value in read.attributes if name == "aria-label"]
    assert (
        "attempt 1 from step 0: +40.0\u202f% at step 12, +70.0\u202f% at step 24; ended by ForgettingLimit"
        in next(one for one in pictures if one.startswith("attempt 1"))
    )


@pytest.mark.usefixtures("without_pictures")
def test_page_shows_what_an_extended_tokenizer_saved(finished: Run, tmp_path: Path) -> None:
    prepare = finished.reports["prepare"]
    assert isinstance(prepare, PrepareReport)
    grown = TokenizerFacts(
        added_tokens=1200, domain_tokens_per_word_before=2.0, domain_tokens_per_word_after=1.5,
        general_tokens_per_word_before=1.4, general_tokens_per_word_after=1.4,
    )  # fmt: skip
    facts = prepare.facts.model_copy(update={"tokenizer": grown})
    finished.reports["prepare"] = prepare.model_copy(update={"facts": facts})
    text = page(finished, tmp_path).text
    assert "The tokenizer learned 1,200 tokens from the domain's text." in text
    assert "domain 2.00 1.50 −25.0 %" in text
    assert re.search(
        r"Byte for byte it predicts the domain as well as the base model from [\d,]+ training tokens on", text
    )


def test_charts_are_in_the_page_and_written_as_png(finished: Run, tmp_path: Path) -> None:
    written = build_report(finished.write(tmp_path))
    assert [path.relative_to(tmp_path).as_posix() for path in written] == [
        "report.html",
        "report/perplexity.png",
        "report/loss.png",
        "report/trade.png",
        "report/scores.png",
        "report/data.png",
        "report/time.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written[1:])
    read = Text(written[0].read_text(encoding="utf-8"))
    assert read.tags.count("svg") == 6
    ids = [value for name, value in read.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    labels = [value for name, value in read.attributes if name == "aria-label"]
    assert "step 60: domain 14.59, general 18.73" in next(
        label for label in labels if label.startswith("base model")
    )
    assert "domain[0] (icd.jsonl): 60,211 tokens; general[0] (readmes.jsonl): 28,004 tokens" in labels


def test_page_loads_nothing_from_outside(finished: Run, tmp_path: Path) -> None:
    source = build_report(finished.write(tmp_path))[0].read_text(encoding="utf-8")
    read = Text(source)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(read.tags)
    links = [
        value for name, value in read.attributes if name in ("src", "href", "xlink:href", "srcset", "data")
    ]
    assert links
    assert all(value.startswith("#") for value in links)
    assert "http:" not in source
    assert "https:" not in source
    assert "@import" not in source
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", source))


def test_hostile_text_is_escaped(finished: Run, tmp_path: Path) -> None:
    verify: Any = finished.reports["verify"]
    finished.reports["verify"] = verify.model_copy(
        update={"samples": (Sample(prompt=HOSTILE, answers=(("base", HOSTILE), ("final", HOSTILE))),)}
    )
    finished.status["selected"]["reason"] = HOSTILE
    finished.status["plan"]["warnings"] = [HOSTILE]
    finished.status["stages"][0]["name"] = HOSTILE[:80]
    finished.status["conditions"][0]["message"] = HOSTILE
    finished.resource["metadata"]["name"] = HOSTILE
    finished.resource["spec"]["corpus"]["domain"][0]["source"] = "file://a/<b>$x^2$</b>-->.jsonl"
    read = page(finished, tmp_path)
    assert not {"script", "img"} & set(read.tags)
    assert read.tags.count("b") == 4  # the four figures at the top
    assert read.text.count('<script>alert("x")</script> {{ 7 * 7 }}') >= 7
    assert "-->" not in "".join(value for name, value in read.attributes if name == "id")


@pytest.mark.usefixtures("without_pictures")
def test_the_page_has_no_character_that_hides_or_turns_text(finished: Run, tmp_path: Path) -> None:
    # YAML has no half of a surrogate pair, and refuses control characters itself; reports are JSON.
    text = "".join(text for text in HOSTILE_TEXTS if "\ud800" not in text)
    verify: Any = finished.reports["verify"]
    finished.reports["verify"] = verify.model_copy(
        update={"samples": (Sample(prompt=text, answers=(("base", text), ("final", text))),)}
    )
    finished.resource["spec"]["corpus"]["domain"][0]["source"] = f"file://{text}.jsonl"
    finished.status["selected"]["reason"] = "\u202evisible"
    page(finished, tmp_path)
    source = (tmp_path / "report.html").read_text()
    assert_inert(source)
    assert source.count("visible") > 60


@pytest.mark.usefixtures("without_pictures")
def test_without_fine_tuning_there_is_no_third_model(finished: Run, tmp_path: Path) -> None:
    verify: Any = finished.reports["verify"]
    digests = tuple((name, "c" * 64 if name == "final" else digest) for name, digest in verify.facts.digests)
    finished.reports["verify"] = verify.model_copy(
        update={"facts": verify.facts.model_copy(update={"digests": digests})}
    )
    text = page(finished, tmp_path).text
    assert "22.20 → 14.59 (chosen model)" in text
    assert "Fine-tuning" not in text


@pytest.mark.parametrize(
    ("reports", "there", "missing"),
    [
        (
            (),
            [],
            [
                "No candidate has been chosen yet.",
                "No checkpoint has been measured yet.",
                "Pretraining has written no report yet.",
                "No task or probe has been scored yet.",
                "No answers yet",
                "The data has not been prepared yet.",
                "The model has not been read yet.",
            ],
        ),
        (("prepare",), ["domain[0] (icd.jsonl) 900 60,211 – 61"], ["No task or probe has been scored yet."]),
        (
            ("prepare", "baseline"),
            ["base model 22.20 – 1.118 18.17 – 1.046"],
            ["No checkpoint has been measured yet."],
        ),
        (
            ("prepare", "baseline", "pretrain"),
            ["60 steps at 243 tokens per second"],
            ["No candidate has been chosen yet.", "No answers yet"],
        ),
    ],
)
def test_report_of_an_unfinished_run_lists_what_is_missing(
    finished: Run, tmp_path: Path, reports: tuple[str, ...], there: list[str], missing: list[str]
) -> None:
    finished.reports = {kind: report for kind, report in finished.reports.items() if kind in reports}
    for name in ("selected", "candidates", "output"):
        del finished.status[name]
    finished.status["conditions"] = []
    text = page(finished, tmp_path).text
    for words in (*there, *missing, "This run has not ended: the page shows what is there so far."):
        assert words in text


@pytest.mark.usefixtures("without_pictures")
def test_page_of_a_stalled_run_starts_with_the_reason(finished: Run, tmp_path: Path) -> None:
    del finished.status["selected"], finished.status["output"]
    finished.reports.pop("verify")
    finished.status["phase"] = "Stalled"
    finished.status["conditions"] = [
        {
            "type": "Stalled", "status": "True", "reason": "GatesBreached",
            "message": "no candidate passes the gates: general perplexity of a1-s60 is +21.0%",
            "lastTransitionTime": "2026-03-01T10:14:00Z",
        }
    ]  # fmt: skip
    finished.status["stages"][2] |= {"state": "Failed", "message": "loss is not a number at step 61"}
    read = page(finished, tmp_path)
    assert ("class", "phase bad") in read.attributes
    assert "Stalled icd no candidate passes the gates: general perplexity of a1-s60 is +21.0 %" in read.text
    assert "loss is not a number at step 61" in read.text


@pytest.mark.usefixtures("without_pictures")
def test_report_of_a_running_run_shows_what_is_in_progress(finished: Run, tmp_path: Path) -> None:
    del finished.status["selected"], finished.status["output"]
    finished.status["conditions"] = [
        {
            "type": "Reconciling", "status": "True", "reason": "StageRunning", "message": "pretrain is running",
            "lastTransitionTime": "2026-03-01T10:14:00Z",
        }
    ]  # fmt: skip
    text = page(finished, tmp_path).text
    assert "This run has not ended (pretrain is running): the page shows what is there so far." in text


@pytest.mark.usefixtures("without_pictures")
def test_a_stopped_run_is_not_said_to_run(finished: Run, tmp_path: Path) -> None:
    condition = finished.status["conditions"][0] | {
        "type": "Reconciling",
        "reason": "StageRunning",
        "message": "pretrain is running",
    }
    finished.status["conditions"] = [condition]
    finished.status["stages"] = [finished.status["stages"][2] | {"state": "Running", "completionTime": None}]
    finished.status["progress"] = {"step": 8, "totalSteps": 60, "tokens": 8192}
    finished.reports = {name: finished.reports[name] for name in ("prepare", "baseline")}
    source = build_report(finished.write(tmp_path), is_stopped=True)[0].read_text(encoding="utf-8")
    text = Text(source).text
    assert "has not ended and does not run now; `dapt run` with its manifest continues it." in text
    assert "pretrain Stopped 2" in text
    assert "Trained on 8,192 tokens step 8 of 60 so far" in text
    assert "is running" not in text


@pytest.mark.usefixtures("without_pictures")
def test_a_gate_with_nothing_to_judge_has_no_column(finished: Run, tmp_path: Path) -> None:
    assert "gate: general scores" in page(finished, tmp_path).text
    finished.resource["spec"]["evaluation"].pop("general")
    finished.resource["spec"]["evaluation"].pop("probes", None)
    text = page(finished, tmp_path).text
    assert "gate: general scores" not in text
    assert "gate: domain gain" in text


def test_an_empty_status_without_a_work_volume_gives_a_page(tmp_path: Path) -> None:
    written = draw_report({}, {"metadata": {"name": "new"}}, tmp_path / "none", tmp_path)
    assert [path.name for path in written] == ["report.html"]
    assert "Pending new This run has not ended" in Text(written[0].read_text()).text


def test_a_measure_that_is_not_finite_is_described_and_not_drawn(finished: Run, tmp_path: Path) -> None:
    pretrain: Any = finished.reports["pretrain"]
    rows = list(pretrain.facts.checkpoints)
    rows[-1] = rows[-1].model_copy(update={"general_a_nats": float("inf"), "general_b_nats": float("nan")})
    facts = pretrain.facts.model_copy(update={"checkpoints": tuple(rows)})
    finished.reports = {"baseline": finished.reports["baseline"]}
    finished.reports["pretrain"] = pretrain.model_copy(update={"facts": facts})
    del finished.status["selected"]
    label = next(
        value
        for name, value in page(finished, tmp_path).attributes
        if name == "aria-label" and "step 60" in value
    )
    assert "step 60: domain 14.59, general ∞" in label


def test_a_missing_status_and_a_damaged_one_get_different_messages(tmp_path: Path) -> None:
    with pytest.raises(ReportError) as caught:
        build_report(tmp_path)
    assert str(caught.value) == f"{tmp_path}/status.yaml: no run to report on; start one with dapt run"
    (tmp_path / "status.yaml").write_text("a: [")
    with pytest.raises(ReportError, match=r"cannot be read \(ParserError\); `dapt run` writes it again$"):
        build_report(tmp_path)
    (tmp_path / "status.yaml").write_text("status: {candidates: 3}")
    with pytest.raises(ReportError, match=r"^adaptation: status cannot be read: candidates: "):
        build_report(tmp_path)


@pytest.mark.parametrize(
    ("usage", "words"),
    [
        ({}, "14 min 00 s no restart after a fault"),
        ({"restarts": 0}, "14 min 00 s no restart after a fault"),
        ({"restarts": 1}, "14 min 00 s 1 restart after a fault"),
        ({"restarts": 3}, "14 min 00 s 3 restarts after faults"),
    ],
)
def test_restarts_are_those_of_the_status_whatever_the_numbers_of_the_runs(
    finished: Run, tmp_path: Path, without_pictures: None, usage: dict[str, int], words: str
) -> None:
    finished.status["usage"] = usage
    finished.status["stages"][0]["try"] = 4  # stopped by the user three times
    assert words in page(finished, tmp_path).text


def test_the_time_is_that_of_all_invocations(finished: Run, tmp_path: Path, without_pictures: None) -> None:
    folder = finished.write(tmp_path)
    Invocations().next(Path("m.yaml")).after(600).next(Path("m.yaml")).after(75).write(folder)
    assert "11 min 15 s no restart after a fault" in page(finished, tmp_path).text


@pytest.mark.usefixtures("without_pictures")
def test_nothing_passes_a_gate_that_has_not_judged_all(finished: Run, tmp_path: Path) -> None:
    # Evaluated candidates alone have passed the gate of the gain: of the others the tasks are missing.
    gates = finished.resource["spec"]["gates"]
    gates["minDomainPerplexityDecrease"] = 0.0
    text = page(finished, tmp_path).text
    assert "a1-s48 15.00 (−32.4 %)" not in text  # a guard: the row is as the status has it
    rows = [line for line in text.split("a1-s") if line.startswith(("12 ", "24 ", "36 ", "48 "))]
    assert rows
    assert all("✓ passes not judged not judged" in row for row in rows)


@pytest.mark.usefixtures("without_pictures")
def test_a_candidate_over_the_limit_on_half_a_alone_fails(finished: Run, tmp_path: Path) -> None:
    report = finished.reports["pretrain"]
    assert isinstance(report, PretrainReport)
    first = report.facts.checkpoints[0]
    only_a = first.model_copy(update={"general_a_nats": first.general_a_nats + 0.3})
    rows = (only_a, *report.facts.checkpoints[1:])
    facts = report.facts.model_copy(update={"checkpoints": rows})
    finished.reports["pretrain"] = report.model_copy(update={"facts": facts})
    drawn = page(finished, tmp_path)
    assert "a1-s12 18.17 (−18.1 %) 19.11 (+5.1 %) 0.200 ✗ fails not judged ✗ fails" in drawn.text
    assert (
        "general perplexity of a1-s12 on half A is +41.9\N{NARROW NO-BREAK SPACE}% against the base model's, over the"
        " limit of +15.0\N{NARROW NO-BREAK SPACE}%"
        in ((tmp_path / "report.html").read_text().replace("&#39;", "'"))
    )


@pytest.mark.usefixtures("without_pictures")
def test_the_gates_speak_of_the_finished_model_too(finished: Run, tmp_path: Path) -> None:
    text = page(finished, tmp_path).text
    assert (
        "passes : general perplexity of the finished model on half B is +9.4 % against the base model's, within the"
        " limit of +15.0 %"
    ) in text


@pytest.mark.usefixtures("without_pictures")
def test_a_column_of_gains_has_one_definition(finished: Run, tmp_path: Path) -> None:
    assert "general perplexity gain gate:" in page(finished, tmp_path).text
    finished.status["candidates"][-1]["gainWithTasks"] = 0.431
    text = page(finished, tmp_path).text
    assert "general perplexity gain with tasks gate:" in text
    assert "0.420 0.431 ✓ passes" in text
    assert "0.200 – ✓ passes" in text


def failed(run: Run, **status: Any) -> Run:
    """Return the run as it is when prepare has found its input wrong."""
    message = "corpus.jsonl:7: no field 'text' (its fields are body, title)"
    condition = {
        "type": "Stalled", "status": "True", "reason": "BadInput",
        "message": f"prepare found its input wrong: {message}", "lastTransitionTime": "2026-03-01T10:01:00Z",
    }  # fmt: skip
    run.reports = {}
    stages = [{**run.status["stages"][0], "state": "Failed", "message": message}]
    run.status = {"phase": "Stalled", "conditions": [condition], "stages": stages} | status
    return run


def headings(source: str) -> list[str]:
    return re.findall(r"<h[23]>(.*?)</h[23]>", source)


def test_a_failure_leaves_no_empty_sections(finished: Run, tmp_path: Path) -> None:
    source = build_report(failed(finished).write(tmp_path))[0].read_text(encoding="utf-8")
    assert headings(source) == ["Time"]
    assert "yet" not in Text(source).text
    assert 'class="missing"' not in source
    assert "prepare found its input wrong: corpus.jsonl:7: no field &#39;text&#39;" in source


@pytest.mark.usefixtures("without_pictures")
def test_a_run_that_has_not_ended_says_what_will_come(finished: Run, tmp_path: Path) -> None:
    run = failed(finished, conditions=[])
    text = page(run, tmp_path).text
    for words in (
        "No candidate has been chosen yet.",
        "No checkpoint has been measured yet.",
        "No task or probe has been scored yet.",
        "The data has not been prepared yet.",
    ):
        assert words in text


@pytest.mark.usefixtures("without_pictures")
def test_without_tasks_there_is_no_section_of_them(finished: Run, tmp_path: Path) -> None:
    run = failed(finished, conditions=[])
    del run.resource["spec"]["evaluation"]
    assert "Tasks and probes" not in page(run, tmp_path).text


def test_charts_follow_the_colours_of_the_page_and_have_one_size_of_text(
    finished: Run, tmp_path: Path
) -> None:
    source = build_report(rolled_back(finished).write(tmp_path))[0].read_text(encoding="utf-8")
    head, _, body = source.partition("</style>")
    assert "@media screen and (prefers-color-scheme: dark)" in head
    assert re.findall(r"#[0-9a-f]{6}\b", body) == []
    used = set(re.findall(r"var\((--chart-[0-9a-f]{6})\)", body))
    light, dark = head.split("prefers-color-scheme: dark", 1)
    assert used
    assert all(f"{name}: #" in light and f"{name}: #" in dark for name in used)
    # Glyphs are scaled to the size of the text, and every chart is equally wide.
    widths = set(re.findall(r'viewBox="0 0 ([0-9.]+) ', body))
    sizes = set(re.findall(r"scale\((0\.[0-9]+) -0\.[0-9]+\)", body))
    assert len(widths) == 1
    assert sizes == {"0.09"}


@pytest.mark.usefixtures("without_pictures")
def test_a_table_says_that_it_scrolls(finished: Run, tmp_path: Path) -> None:
    drawn = page(finished, tmp_path)
    assert drawn.tags.count("table") == drawn.text.count("scroll sideways for more →") > 4
    assert drawn.attributes.count(("tabindex", "0")) == drawn.tags.count("table")


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colour", sorted(set(style.DARK) - {style.PAPER, style.GRID}))
def test_what_a_chart_draws_is_legible_in_the_dark(colour: str) -> None:
    assert contrast(style.DARK[colour], style.DARK[style.PAPER]) >= 4.5


@pytest.mark.usefixtures("without_pictures")
def test_a_warning_that_the_status_has_cut_is_shown_once_and_whole(finished: Run, tmp_path: Path) -> None:
    report = finished.reports["prepare"]
    assert isinstance(report, PrepareReport)
    whole = (
        "domain[0]: " + "much is to be said of this " * 9 + "source.",
        "general[0]: 3 of 9 records are bad.",
    )
    facts = report.facts.model_copy(update={"warnings": whole})
    finished.reports["prepare"] = report.model_copy(update={"facts": facts})
    finished.status["plan"]["warnings"] = [
        shortened(whole[0], 160),
        "more warnings in its report: 1",
        "little text",
    ]
    text = page(finished, tmp_path).text
    assert [text.count(words) for words in ("domain[0]: much", whole[1], "little text", "more warnings")] == [
        1,
        1,
        1,
        0,
    ]


@pytest.mark.usefixtures("without_pictures")
def test_a_difference_that_is_shown_as_nothing_is_no_change(finished: Run, tmp_path: Path) -> None:
    """However sure it is: 0.02 points read as 0.0."""
    report = finished.reports["verify"].model_dump(mode="json")
    measures = [report["facts"]["final"], *(model["measure"] for model in report["measures"])]
    for score in (score for measure in measures for score in measure["scores"] if score["name"] == "codes"):
        score.update(score=0.3102, difference=0.0002, difference_standard_error=0.00001)
    finished.reports["verify"] = type(finished.reports["verify"]).model_validate(report)
    text = page(finished, tmp_path).text
    assert "31.0 (+0.0 ± 0.0) less than 0.1 points" in text
