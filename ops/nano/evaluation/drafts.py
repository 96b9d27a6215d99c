"""How often the drafts of the MTP modules are accepted, by position.

Drafts are the modules' likeliest tokens, made over whole texts at once: with the modules' KV repaired after a rejection
(specification 3.4) serving makes the same ones. Row p is where a step begins whose target has just chosen token p + 1;
module k's draft there is for token p + 2 + k, and it is looked at only when the drafts before it were accepted.

Greedily a draft is accepted when it is the text's token. When sampling, a draft that is certain of itself is accepted
with the probability that the trunk gives it; a text that the model sampled is one outcome of that rule, so the same
comparison walks through it as serving would.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.progress import track
from torch import Tensor
from torch.nn import functional

from ops.nano.dense import DenseModel
from ops.nano.evaluation.checkpoint import Checkpoint
from ops.nano.evaluation.rows import Rows, rows_of

SKILLS_TOGETHER = "all skills"  # a row of its own beside the domains


@dataclass(frozen=True)
class DraftText:
    """A text whose drafts are judged. first: the first token that the model wrote; at least 1."""

    token_ids: Sequence[int]
    first: int


@dataclass(frozen=True)
class DraftCounts:
    """What happened in some texts, by module. proposed: rows whose earlier drafts were all right. matched: of these,
    drafts that equal the text. expected: of these, the sum of the trunk's probabilities of the drafts.

    num_steps, num_tokens: of a walk from step to step as serving makes it, each one accepted run and one more token.
    """

    proposed: tuple[float, ...]
    matched: tuple[float, ...]
    expected: tuple[float, ...]
    num_steps: int
    num_tokens: int

    @staticmethod
    def total(parts: Iterable[DraftCounts]) -> DraftCounts:
        """Of all parts together. Raises ValueError without any."""
        members = list(parts)
        if not members:
            raise ValueError("no texts to count drafts of")
        columns = [
            tuple(map(sum, zip(*(getattr(part, name) for part in members), strict=True)))
            for name in ("proposed", "matched", "expected")
        ]
        steps, tokens = sum(part.num_steps for part in members), sum(part.num_tokens for part in members)
        return DraftCounts(columns[0], columns[1], columns[2], steps, tokens)


@dataclass(frozen=True)
class Acceptance:
    """by_position: of each module's drafts, given that all before were accepted. mean_length: tokens of a step, the
    target's own included, when steps begin at every row alike. tokens_per_step: when a step begins where the one before
    it ended. num_tokens: written by the model and looked at."""

    by_position: tuple[float, ...]
    mean_length: float
    tokens_per_step: float
    num_tokens: int


@dataclass(frozen=True)
class DraftResults:
    """By domain. greedy, sampled: on text that the model wrote itself. on_text: on held-out text as it stands, by the
    rule of sampling."""

    greedy: Mapping[str, Acceptance]
    sampled: Mapping[str, Acceptance]
    on_text: Mapping[str, Acceptance]


def evaluate_drafts(
    checkpoint: Checkpoint,
    *,
    greedy: Mapping[str, Sequence[DraftText]],
    sampled: Mapping[str, Sequence[DraftText]],
    on_text: Mapping[str, Sequence[DraftText]],
    together: Sequence[str],
) -> DraftResults:
    """Texts by domain. together: domains that are also counted as one."""
    model, window = checkpoint.model(), checkpoint.config.window
    greedy_counts = {domain: count_texts(model, window, texts, domain) for domain, texts in greedy.items()}
    sampled_counts = {domain: count_texts(model, window, texts, domain) for domain, texts in sampled.items()}
    text_counts = {domain: count_texts(model, window, texts, domain) for domain, texts in on_text.items()}
    return DraftResults(
        greedy=_acceptances(_with_total(greedy_counts, together), is_sampled=False),
        sampled=_acceptances(_with_total(sampled_counts, together), is_sampled=True),
        on_text=_acceptances(text_counts, is_sampled=True),
    )


@torch.no_grad()
def count_texts(model: DenseModel, window: int, texts: Sequence[DraftText], domain: str) -> DraftCounts:
    """All drafts of all texts. Raises ValueError without texts."""
    counts: list[DraftCounts] = []
    batches = rows_of([text.token_ids for text in texts], window=window)
    for rows in track(batches, f"drafts of {domain}", transient=True):
        drafts, probabilities = _drafts(model, rows)
        for row, number in enumerate(rows.numbers):
            token_ids = torch.tensor(texts[number].token_ids)
            own = (rows.sequence(drafts, row).T, rows.sequence(probabilities, row).T)
            counts.append(count_drafts(token_ids, *own, first=texts[number].first))
    return DraftCounts.total(counts)


def count_drafts(token_ids: Tensor, drafts: Tensor, probabilities: Tensor, *, first: int) -> DraftCounts:
    """One text. token_ids: int64 [L]. drafts: int64 [K, L], module k's at row p is for token p + 2 + k. probabilities:
    [K, L], the trunk's of that draft at row p + 1 + k. Rows count from that before the token `first`."""
    num_modules, num_tokens = drafts.shape
    proposed, matched, expected = [], [], []
    row = torch.arange(num_tokens)
    is_reached, run = row >= first - 1, torch.zeros(num_tokens, dtype=torch.int64)
    for module in range(num_modules):
        ahead = 2 + module
        is_reached = is_reached & (row + ahead < num_tokens)
        is_match = is_reached & (drafts[module] == functional.pad(token_ids[ahead:], (0, ahead), value=-1)[:num_tokens])
        proposed.append(float(is_reached.sum()))
        matched.append(float(is_match.sum()))
        expected.append(float(probabilities[module][is_reached].sum()))
        run += is_match
        is_reached = is_match
    num_steps = _num_steps(run.tolist(), first)
    return DraftCounts(tuple(proposed), tuple(matched), tuple(expected), num_steps, max(0, num_tokens - first - 1))


def acceptance(counts: DraftCounts, *, is_sampled: bool) -> Acceptance:
    """Rates from counts; 0 for a module that was never reached."""
    accepted = counts.expected if is_sampled else counts.matched
    by_position = tuple(
        part / proposed if proposed else 0.0 for part, proposed in zip(accepted, counts.proposed, strict=True)
    )
    reached, mean_length = 1.0, 1.0
    for rate in by_position:
        reached *= rate
        mean_length += reached
    per_step = counts.num_tokens / counts.num_steps if counts.num_steps else 0.0
    return Acceptance(by_position, mean_length, per_step, counts.num_tokens)


def _num_steps(run: Sequence[int], first: int) -> int:
    """Steps until the text is done, the first of them where its token `first` is known. run: accepted drafts by row."""
    row, num_steps = first - 1, 0
    while row + 2 < len(run):
        row += run[row] + 1
        num_steps += 1
    return num_steps


def _drafts(model: DenseModel, rows: Rows) -> tuple[Tensor, Tensor]:
    """Every module's likeliest token, int64 [B * L, K], and what the trunk thinks of it."""
    hidden = model.hidden(rows.batch)
    shape = rows.batch.token_ids.shape
    trunk = model.logits(hidden).log_softmax(dim=-1).unflatten(0, shape)
    drafts, probabilities = [], []
    for module, logits in enumerate(model.draft(rows.batch, hidden)):
        likeliest = logits.argmax(dim=-1).unflatten(0, shape)
        ahead = 1 + module
        verifying = functional.pad(trunk[:, ahead:], (0, 0, 0, ahead))
        drafts.append(likeliest.flatten())
        probabilities.append(verifying.gather(2, likeliest.unsqueeze(2)).exp().flatten())
    return torch.stack(drafts, dim=1), torch.stack(probabilities, dim=1)


def _with_total(counts: Mapping[str, DraftCounts], together: Sequence[str]) -> dict[str, DraftCounts]:
    members = [counts[domain] for domain in together if domain in counts]
    return {SKILLS_TOGETHER: DraftCounts.total(members), **counts} if members else dict(counts)


def _acceptances(counts: Mapping[str, DraftCounts], *, is_sampled: bool) -> dict[str, Acceptance]:
    return {domain: acceptance(part, is_sampled=is_sampled) for domain, part in counts.items()}
