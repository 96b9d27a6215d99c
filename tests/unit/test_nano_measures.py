"""Measurements of the nano model against values worked out by hand, and the report and figures made of them."""

from __future__ import annotations

import dataclasses
import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.model.config import parse_model_config
from ops.nano import evaluate
from ops.nano.dense import DenseModel, RoutingRecord
from ops.nano.evaluation.checkpoint import fingerprint, load_checkpoint
from ops.nano.evaluation.drafts import (
    SKILLS_TOGETHER,
    Acceptance,
    DraftCounts,
    DraftResults,
    DraftText,
    acceptance,
    count_drafts,
    count_texts,
)
from ops.nano.evaluation.figures import DRAWINGS, draw_figures
from ops.nano.evaluation.foreign import foreign_texts
from ops.nano.evaluation.inputs import written_texts
from ops.nano.evaluation.language import (
    MODEL,
    SAME_TEXT,
    DomainLanguage,
    LanguageResults,
    LanguageScore,
    score,
    token_nats,
)
from ops.nano.evaluation.measurements import Measurements, Origin, read_measurements, write_measurements
from ops.nano.evaluation.ngram import Ngram
from ops.nano.evaluation.report import SECTIONS, report
from ops.nano.evaluation.results import (
    CallRates,
    Completion,
    Mismatch,
    ParityResult,
    Rate,
    SkillResult,
    Variant,
    WrongAnswer,
)
from ops.nano.evaluation.routing import (
    DomainRouting,
    GateSums,
    LayerRouting,
    RoutingResults,
    evaluate_routing,
    margins,
    skew,
    total_variation,
)
from ops.nano.evaluation.rows import rows_of
from ops.nano.evaluation.targets import targets
from ops.nano.evaluation.training_curve import NUM_POINTS, PhaseCurve, read_curves
from ops.nano.model import start_drafts
from tests.fakes.checkpoint import random_weights, write_checkpoint
from tests.fakes.configs import tiny_config

MAX_FIGURE_BYTES = 150_000


# N-grams


def test_bigram_equals_kneser_ney_by_hand() -> None:
    """Bigrams 01 once, 12 twice, 21 twice, 13 once: discounts 2 / 6 and, over the tokens in front, 2 / 4."""
    ngram = Ngram([[0, 1, 2, 1, 2, 1, 3]], order=2, vocab_size=4)
    rest = 0.5 * 3 / 4 / 4  # what the unigram's discount took, over all tokens
    unigram = [rest, (2 - 0.5) / 4 + rest, (1 - 0.5) / 4 + rest, (1 - 0.5) / 4 + rest]
    third = 1 / 3
    kept = np.array([0.0, 0.0, 2 - third, 1 - third])
    np.testing.assert_allclose(ngram.next_probabilities([1]), (kept + third * 2 * np.array(unigram)) / 3)
    np.testing.assert_allclose(ngram.next_probabilities([3]), unigram)  # nothing ever followed a 3


@pytest.mark.parametrize("order", [1, 2, 4])
def test_ngram_is_a_distribution(order: int) -> None:
    """After contexts that were seen, partly seen and never seen, the probabilities of all tokens add up to 1."""
    rng = np.random.default_rng(order)
    texts = [rng.integers(0, 12, size).tolist() for size in (2, 30, 200)]
    ngram = Ngram(texts, order, vocab_size=20)
    for context in ([0], texts[2][:7], [*texts[2][:5], 19], [19, 18, 17, 16]):
        probabilities = ngram.next_probabilities(context)
        assert probabilities.min() > 0.0
        assert probabilities.sum() == pytest.approx(1.0)


def test_longer_context_predicts_a_structured_text_better() -> None:
    """Where every token follows from the three before it, the 4-gram is nearly certain and the unigram guesses."""
    text = [0, *([1, 1, 2, 2, 1, 3] * 40)]
    bits = {order: -Ngram([text], order, 8).log_probabilities(text[:31]).mean() / math.log(2) for order in (1, 2, 4)}
    assert bits[4] < 0.2 < bits[2] < bits[1]


def test_ngram_scores_what_it_says_of_the_next_token() -> None:
    """The score of a text is made of the probabilities after each of its beginnings."""
    ngram = Ngram([[0, 1, 2, 3, 1, 2]], order=3, vocab_size=5)
    text = [0, 3, 1, 2, 4]
    step_by_step = [np.log(ngram.next_probabilities(text[:end])[text[end]]) for end in range(1, len(text))]
    np.testing.assert_allclose(ngram.log_probabilities(text), step_by_step)


def test_ngrams_that_do_not_fit_are_refused() -> None:
    """Keys of 64 bits hold no 8-grams over a thousand tokens."""
    with pytest.raises(ValueError, match="64 bits"):
        Ngram([[0, 1]], order=8, vocab_size=1000)


def test_perplexity_and_bits_per_byte() -> None:
    """Ten tokens of three bits each over twenty bytes; uniform logits cost log V for every token but the first."""
    result = score(10 * math.log(8.0), num_tokens=10, num_bytes=20)
    assert result.perplexity == pytest.approx(8.0)
    assert result.bits_per_byte == pytest.approx(1.5)
    assert token_nats(torch.zeros(5, 16), torch.arange(5)) == pytest.approx(4 * math.log(16.0))


# Rows


def test_rows_hold_every_sequence_once() -> None:
    """Whatever the lengths: each sequence is found again, rows are multiples of the window and batches bounded."""
    sequences = [list(range(1, 1 + length)) for length in (3, 17, 8, 1, 40, 9, 9)]
    found = {}
    for rows in rows_of(sequences, window=8, tokens_at_once=48):
        assert rows.batch.token_ids.shape[1] % 8 == 0
        assert rows.batch.token_ids.numel() <= 48
        for row, number in enumerate(rows.numbers):
            found[number] = rows.sequence(rows.batch.token_ids.flatten(), row).tolist()
    assert [found[number] for number in range(len(sequences))] == sequences
    assert rows_of([], window=8) == []


# Drafts

# Row:      0  1  2  3  4  5  6  7
TOKENS = torch.tensor([5, 6, 7, 8, 9, 1, 2, 3])
DRAFTS = torch.tensor(
    [
        [0, 8, 9, 0, 2, 3, 0, 0],  # for row + 2: right at rows 1, 2, 4 and 5
        [0, 9, 0, 2, 3, 0, 0, 0],  # for row + 3: right at rows 1 and 4, and at 3, where the first draft is wrong
    ]
)


def test_acceptance_by_hand() -> None:
    """The model wrote from token 2 on. Rows 1 to 5 have a first draft to judge, 4 are right; of these rows 1, 2 and 4
    have a second one, 2 are right. A walk: row 1 takes two drafts and ends at 4, row 4 takes two and the text ends."""
    probabilities = torch.tensor([[0.0, 0.5, 0.5, 0.1, 0.7, 0.2, 0.9, 0.9], [0.0, 0.4, 0.2, 0.9, 0.3, 0.9, 0.9, 0.9]])
    counts = count_drafts(TOKENS, DRAFTS, probabilities, first=2)
    assert counts.proposed == (5.0, 3.0)
    assert counts.matched == (4.0, 2.0)
    assert counts.expected == pytest.approx((2.0, 0.9))
    assert (counts.num_steps, counts.num_tokens) == (2, 5)
    greedy = acceptance(counts, is_sampled=False)
    assert greedy.by_position == pytest.approx((4 / 5, 2 / 3))
    assert greedy.mean_length == pytest.approx(1 + 4 / 5 + 4 / 5 * 2 / 3)
    assert greedy.tokens_per_step == 2.5
    assert acceptance(counts, is_sampled=True).by_position == pytest.approx((2.0 / 5, 0.9 / 3))


def test_text_without_room_for_drafts_counts_nothing() -> None:
    """The last token of a text has nothing behind it to draft."""
    counts = count_drafts(TOKENS, DRAFTS, torch.ones(2, 8), first=7)
    assert counts == DraftCounts((0.0, 0.0), (0.0, 0.0), (0.0, 0.0), 0, 0)
    assert acceptance(counts, is_sampled=False) == Acceptance((0.0, 0.0), 1.0, 0.0, 0)


def test_counts_add_up() -> None:
    """Two texts count as one, and no text at all is refused."""
    part = DraftCounts((4.0, 2.0), (2.0, 1.0), (1.5, 0.5), 3, 6)
    assert DraftCounts.total([part, part]) == DraftCounts((8.0, 4.0), (4.0, 2.0), (3.0, 1.0), 6, 12)
    with pytest.raises(ValueError, match="no texts"):
        DraftCounts.total([])


@torch.no_grad()
def test_drafts_over_whole_texts_equal_drafting_step_by_step() -> None:
    """One pass over a text finds the steps and accepted drafts of a walk that drafts from what is known at each step,
    on text that follows the first module often enough for all modules to be reached."""
    fields = tiny_config(vocab_size=12)
    config = parse_model_config(fields)
    tensors = start_drafts(config, {name: weight.float() for name, weight in random_weights(fields, seed=3).items()})
    model = DenseModel(config, tensors, torch.float32)
    text = _following_text(model, config.window, num_tokens=44)
    counts = count_texts(model, config.window, [DraftText(text, first=4)], "test")
    row, num_steps, accepted = 3, 0, 0
    while row + 2 < len(text):
        run = _accepted_run(model, config.window, text, row)
        row, num_steps, accepted = row + run + 1, num_steps + 1, accepted + run
    assert counts.num_steps == num_steps
    past_end = row + 2 - len(text)  # the last step's own token, when drafts have ended the text already
    assert counts.num_tokens == num_steps + accepted - past_end == len(text) - 5
    assert counts.matched[2] > 0


def _drafts_at_last_row(model: DenseModel, window: int, known: Sequence[int], module: int) -> int:
    """What a module drafts after `known`, whose last token it consumes."""
    (rows,) = rows_of([known], window=window)
    logits = model.draft(rows.batch, model.hidden(rows.batch))[module]
    return int(logits[len(known) - 2 - module].argmax())


def _following_text(model: DenseModel, window: int, num_tokens: int) -> list[int]:
    text = [3, 1]
    while len(text) < num_tokens:
        is_own = len(text) % 9 != 0
        text.append(_drafts_at_last_row(model, window, text, 0) if is_own else int(torch.randint(12, ())))
    return text


def _accepted_run(model: DenseModel, window: int, text: list[int], row: int) -> int:
    known = text[: row + 2]
    for module in range(3):
        draft = _drafts_at_last_row(model, window, known, module)
        if len(known) == len(text) or draft != text[len(known)]:
            return module
        known = [*known, draft]
    return 3


def test_written_texts_stop_when_enough_was_written() -> None:
    """Prompts do not count; completions that were never made are left out, and domains without any."""
    made = Completion((1, 2, 3), (4, 5), is_stopped=True)
    none = Completion((1, 2, 3), (), is_stopped=False)
    texts = written_texts({"a": [none, made, made, made, made], "b": [none]}, num_tokens=5)
    assert texts == {"a": [DraftText((1, 2, 3, 4, 5), first=3)] * 3}


# Routing

# Two tokens, four experts, two for each; the bias makes the second token take expert 3 instead of expert 0.
SCORES = torch.tensor([[0.8, 0.6, 0.4, 0.2], [0.5, 0.9, 0.1, 0.4]])
BIAS = torch.tensor([0.0, 0.0, 0.0, 0.3])
CHOSEN = torch.tensor([[0, 1], [1, 3]])


def test_confidence_and_load_by_hand() -> None:
    """Mass: 1.4 of 2.0 and 1.3 of 1.9. Margin: 0.6 before 0.5 (expert 3 with its bias), and 0.7 before 0.5."""
    record = RoutingRecord(SCORES, CHOSEN)
    torch.testing.assert_close(margins(record, BIAS), torch.tensor([0.1, 0.2]))
    sums = GateSums(5, BIAS.repeat(2), torch.zeros(2, 8, dtype=torch.float64))
    wide = RoutingRecord(torch.cat((SCORES, torch.zeros(2, 4)), dim=1), CHOSEN)
    sums.bias[4:] = -1.0
    sums.add(wide, half=0)
    sums.add(wide, half=1)
    result = sums.result()
    assert result.load == (2, 4, 0, 2, 0, 0, 0, 0)
    assert result.mass == pytest.approx((1.4 / 2.0 + 1.3 / 1.9) / 2)
    assert result.margin == pytest.approx(0.15)
    assert (result.expert_skew, result.rank_skew) == (4.0, 4.0)
    assert (result.layer_id, result.distance_to_self) == (5, 0.0)


def test_skew_and_distance() -> None:
    """Balanced is 1; loads that share nothing are 1 apart, whatever their sizes."""
    assert skew(torch.tensor([3.0, 3.0])) == 1.0
    assert skew(torch.tensor([6.0, 0.0, 0.0])) == 3.0
    assert total_variation(torch.tensor([2.0, 2.0, 0.0]), torch.tensor([5.0, 0.0, 5.0])) == 0.5
    assert total_variation(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 9.0])) == 1.0
    with pytest.raises(ValueError, match="nothing"):
        total_variation(torch.zeros(2), torch.ones(2))


def test_routing_counts_real_tokens_of_a_checkpoint(tmp_path: Path) -> None:
    """Every token makes as many choices as its top-k, padding none; masses lie between no preference and certainty."""
    write_checkpoint(tmp_path, tiny_config())
    checkpoint = load_checkpoint(tmp_path)
    texts = {"even": [[3] * 5, [4] * 12], "odd": [[5, 6, 7], [8] * 9]}
    results = evaluate_routing(checkpoint, texts, {"foreign": [[9] * 4, [10] * 4]})
    assert [(each.domain, each.num_tokens, each.is_foreign) for each in results.domains] == [
        ("even", 17, False),
        ("odd", 12, False),
        ("foreign", 8, True),
    ]
    for domain in results.domains:
        assert len(domain.layers) == len(checkpoint.config.moe_layers)
        for layer in domain.layers:
            assert sum(layer.load) == domain.num_tokens * checkpoint.config.top_k
            assert 0.0 < layer.mass < 1.0
            assert layer.margin >= 0.0
    assert results.distance("odd", "even") == results.distance("even", "odd") > 0.0
    assert results.distance("even", "even") > 0.0


def test_foreign_texts_are_seeded() -> None:
    """The same pieces each time, and as many as asked for of those that are made by chance."""
    texts = foreign_texts("one two three", num_pieces=3)
    assert texts == foreign_texts("one two three", num_pieces=3)
    assert [len(texts[kind]) for kind in ("shuffled words", "base64", "random bytes")] == [3, 3, 3]


# Training curve


def test_curve_keeps_the_last_word_of_each_step(tmp_path: Path) -> None:
    """A step that was told twice counts once, means are over the chunk, and there are no more points than wanted."""
    lines = [
        {"phase": "trunk", "step": 1, "tokens": 10, "loss": 9.0, "balance": 1.0},
        {"phase": "trunk", "step": 1, "tokens": 10, "loss": 4.0, "balance": 1.0},
        {"phase": "trunk", "step": 2, "tokens": 20, "loss": 2.0, "balance": 1.0},
        *({"phase": "drafts", "step": n, "tokens": n, "loss": 1.0, "draft_1": 2.0} for n in range(1, 3 * NUM_POINTS)),
    ]
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    trunk, drafts = read_curves(tmp_path)
    assert trunk == PhaseCurve("trunk", 2, (10, 20), {"loss": (4.0, 2.0)})
    assert (drafts.steps, len(drafts.tokens), set(drafts.losses)) == (299, NUM_POINTS, {"loss", "draft_1"})


# Report and figures


def _skill(name: str, *, calls: CallRates | None = None) -> SkillResult:
    wrong = WrongAnswer("<|im_start|>user\nWhat | is it?", "four", "five", "another answer")
    variants = (
        {Variant.ANSWER: Rate(8, 10)} if calls is None else {Variant.CALL: Rate(9, 10), Variant.NO_TOOL: Rate(1, 1)}
    )
    return SkillResult(
        skill=name,
        num_conversations=10,
        num_questions=9,
        exact=Rate(8, 10),
        exact_new=Rate(3, 4),
        well_formed=Rate(10, 10),
        reasoning=Rate(7, 10),
        exact_by_variant=variants,
        calls=calls,
        num_cut=0,
        mean_tokens=31.4,
        wrong=(wrong,),
    )


def _routing(domain: str, load: tuple[int, ...], *, is_foreign: bool = False) -> DomainRouting:
    layers = tuple(LayerRouting(layer_id, load, 2.0, 1.5, 0.5, 0.02, 0.01) for layer_id in (3, 4))
    return DomainRouting(domain, is_foreign, 100, layers)


@pytest.fixture
def measurements() -> Measurements:
    """Made-up results of every part."""
    drafts = {
        SKILLS_TOGETHER: Acceptance((0.85, 0.59, 0.5), 2.6, 2.5, 900),
        "text": Acceptance((0.5,) * 3, 1.9, 1.8, 90),
    }
    scores = {name: LanguageScore(9.0, 1.5) for name in (MODEL, "unigram", "4-gram", SAME_TEXT)}
    loads = ((1, 2, 3, 4, 5, 6, 7, 8), (8, 7, 6, 5, 4, 3, 2, 1))
    return Measurements(
        checkpoint="somewhere",
        fingerprint="0" * 64,
        num_parameters=14_700_000,
        num_bytes=29_400_000,
        origins={"answers": Origin("python -m ops.nano.evaluate somewhere", "2026-01-02 03:04", "a machine", 61.2)},
        training=(
            PhaseCurve("trunk", 9, (10, 20), {"loss": (2.0, 1.0)}),
            PhaseCurve("drafts", 9, (10, 20), {"loss": (4.0, 3.0), "draft_1": (2.0, 1.0)}),
        ),
        answers=(_skill("arithmetic"), _skill("tools", calls=CallRates(Rate(10, 10), Rate(8, 10)))),
        language=LanguageResults((DomainLanguage("text", 50, 120, scores),), {"4-gram": 10, MODEL: 5, SAME_TEXT: 5}),
        drafts=DraftResults(drafts, drafts, {"text": drafts["text"]}),
        routing=RoutingResults(
            8,
            2,
            8,
            (
                _routing("arithmetic", loads[0]),
                _routing("code", loads[1]),
                _routing("base64", loads[0], is_foreign=True),
            ),
            {"arithmetic | code": 0.44, "arithmetic | base64": 0.0, "code | base64": 0.44},
        ),
        parity=ParityResult(200, 4000, (Mismatch("text", 7, 3, "\n", "`", 1e-5),)),
    )


def test_report_has_every_section(measurements: Measurements) -> None:
    """Every part is there with its figure and its numbers, and examples keep what Markdown would read as its own."""
    text = report(measurements, list(DRAWINGS))
    for section in SECTIONS:
        assert f"\n## {section.title}\n" in text
        assert section.figure is None or f"](figures/{section.figure})" in text
    for number in ("`" + "0" * 64 + "`", "80.0 % of 20", "75.0 % of 8", "about 0.00M", "| 85.0 % | 59.0 % | 50.0 % |"):
        assert number in text
    assert "199 of 200" in text
    assert "1 are ties" in text
    assert "What | is it?" in text


def test_report_leaves_out_what_was_not_measured(measurements: Measurements) -> None:
    """A part that is missing has no title, and a figure that was not drawn no link."""
    less = dataclasses.replace(measurements, routing=None, parity=None, training=None)
    text = report(less, ["accuracy.svg"])
    assert "## Expert load" not in text
    assert "## The same tokens" not in text
    assert "](figures/accuracy.svg)" in text
    assert "acceptance.svg" not in text


def test_targets_are_judged_by_their_aims(measurements: Measurements) -> None:
    """Reached and missed, in the order of the table."""
    assert [target.is_reached for target in targets(measurements)] == [True, False, True, False, True, False]
    assert list(targets(Measurements("", "", 0, 0))) == []


def test_measurements_survive_the_file(measurements: Measurements, tmp_path: Path) -> None:
    """What is read is what was written, and a list of numbers is one line."""
    path = tmp_path / "results.json"
    write_measurements(path, measurements)
    assert read_measurements(path) == measurements
    assert '"load": [1, 2, 3, 4, 5, 6, 7, 8],' in path.read_text()


def test_figures_are_small_and_the_same_each_time(measurements: Measurements, tmp_path: Path) -> None:
    """Every figure is an SVG whose bytes depend on the measurements alone."""
    names = draw_figures(measurements, tmp_path / "one")
    assert names == list(DRAWINGS) == draw_figures(measurements, tmp_path / "other")
    for name in names:
        content = (tmp_path / "one" / name).read_bytes()
        assert content == (tmp_path / "other" / name).read_bytes()
        assert ET.fromstring(content).tag == "{http://www.w3.org/2000/svg}svg"
        assert len(content) < MAX_FIGURE_BYTES


def test_figure_of_a_missing_part_is_removed(measurements: Measurements, tmp_path: Path) -> None:
    """A figure of an earlier checkpoint must not stay beside a report that does not show it."""
    draw_figures(measurements, tmp_path)
    assert "load.svg" not in draw_figures(dataclasses.replace(measurements, routing=None), tmp_path)
    assert not (tmp_path / "load.svg").exists()


# The command


def test_parts_of_other_weights_are_dropped(measurements: Measurements, tmp_path: Path) -> None:
    """Results are kept for the weights that they were measured on, and only for those."""
    folder, out = tmp_path / "checkpoint", tmp_path / "out"
    out.mkdir()
    write_checkpoint(folder, tiny_config())
    write_measurements(out / "results.json", measurements)
    fresh = evaluate.known_before(folder, out)
    assert (fresh.fingerprint, fresh.answers) == (fingerprint(folder), None)
    same = dataclasses.replace(measurements, fingerprint=fingerprint(folder), checkpoint=str(folder))
    write_measurements(out / "results.json", same)
    assert evaluate.known_before(folder, out) == same


def test_new_part_takes_the_place_of_the_old_one(measurements: Measurements) -> None:
    """One part is replaced with its origin, the others stay; nothing measured changes nothing."""
    parity = ParityResult(10, 100, ())
    part = evaluate.Part("parity", parity, 2.0, "2026-02-03 04:05")
    known = evaluate.with_part(measurements, part, "the command")
    assert known.parity == parity
    assert known.answers == measurements.answers
    assert (known.origins["parity"].command, set(known.origins)) == ("the command", {"answers", "parity"})
    assert evaluate.with_part(measurements, dataclasses.replace(part, value=None), "") == measurements


def test_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """The message names it and lists those that exist."""
    with pytest.raises(SystemExit):
        evaluate.main(["nowhere", "--only", "answers,speed"])
    assert "no part is called speed; there are training," in capsys.readouterr().err


@pytest.mark.parametrize(("start", "is_told"), [("abc", True), ("other", False), (None, False)])
def test_a_run_that_went_on_has_the_phases_before_it(tmp_path: Path, start: str | None, is_told: bool) -> None:
    """Those of the checkpoint it began with, if that is the one described; a fresh run has none."""
    curve = PhaseCurve("trunk", 3, (10,), {"loss": (1.0,)})
    write_measurements(tmp_path / "results.json", Measurements("folder", "abc", 1, 2, training=(curve,)))
    (tmp_path / "recipe.json").write_text(json.dumps({} if start is None else {"start": start}))
    assert evaluate.earlier_phases(tmp_path, tmp_path) == ((curve,) if is_told else ())
    assert evaluate.earlier_phases(None, tmp_path) == ()
