"""Sequence: stop conditions, and what is told to the client."""

import math
from dataclasses import replace

import pytest

from actors.attention.sequence import Sequence, check_request
from actors.errors import RequestRejected
from actors.messages import FinishReason, GenerateRequest, SamplingSpec, TokenEvent, TokenLogprob

EOS = (1, 2)


def _sequence(spec: SamplingSpec, prompt: tuple[int, ...] = (5, 6, 7), max_model_len: int = 100) -> Sequence:
    request = GenerateRequest("r", prompt, spec)
    return Sequence(request, arrival=0, deadline=1.0, max_model_len=max_model_len, eos_token_ids=EOS)


@pytest.mark.parametrize(
    ("spec", "tokens", "reason"),
    [
        (SamplingSpec(max_tokens=3), [9, 9, 9], FinishReason.LENGTH),
        (SamplingSpec(max_tokens=3), [9, 2], FinishReason.STOP),
        (SamplingSpec(max_tokens=3), [9, 9, 1], FinishReason.STOP),
        (SamplingSpec(max_tokens=3, ignore_eos=True), [9, 2, 1], FinishReason.LENGTH),
        (SamplingSpec(max_tokens=3, ignore_eos=True, stop_token_ids=(8,)), [1, 8], FinishReason.STOP),
        (SamplingSpec(max_tokens=5, stop_token_ids=(8,)), [8], FinishReason.STOP),
        (SamplingSpec(max_tokens=4, min_tokens=2), [1, 2, 2], FinishReason.STOP),
        (SamplingSpec(max_tokens=1000), [9] * 97, FinishReason.LENGTH),
    ],
)
def test_a_sequence_stops_at_the_first_reason_that_holds(
    spec: SamplingSpec, tokens: list[int], reason: FinishReason
) -> None:
    """Stop ids of checkpoint and request, max_tokens and the context's end; all tokens before the last give none."""
    sequence = _sequence(spec)
    reasons = [sequence.append_token(token_id) for token_id in tokens]
    assert reasons == [None] * (len(tokens) - 1) + [reason]
    assert sequence.completion_token_ids == tokens


def test_a_finished_length_takes_no_more_tokens() -> None:
    """Appending past max_tokens is a bug."""
    sequence = _sequence(SamplingSpec(max_tokens=1))
    sequence.append_token(9)
    with pytest.raises(AssertionError, match="already has its 4 tokens"):
        sequence.append_token(9)


def test_events_tell_each_token_once() -> None:
    """Tokens and logprobs since the last event, in order; no news, no event; cached tokens only at first."""
    sequence = _sequence(SamplingSpec(max_tokens=9, logprobs=0))
    sequence.num_cached_tokens = 2
    assert sequence.take_event() is None
    first, second, third = (TokenLogprob(token_id, -1.0) for token_id in (11, 12, 13))
    sequence.append_token(11, first)
    sequence.append_token(12, second)
    assert sequence.take_event() == TokenEvent("r", (11, 12), (first, second), num_cached_tokens=2)
    assert sequence.take_event() is None
    sequence.append_token(13, third)
    assert sequence.take_event() == TokenEvent("r", (13,), (third,))


def test_sampling_rows_carry_the_absolute_position() -> None:
    """The position is the index of the token to come, so a resumed prompt draws the same random numbers."""
    sequence = _sequence(SamplingSpec(max_tokens=9, seed=4, stop_token_ids=(8, 1)))
    sequence.append_token(9)
    row = sequence.sampling_row()
    assert (row.seed, row.position, row.num_completion_tokens) == (4, 4, 1)
    assert row.stop_token_ids == (1, 2, 8)
    assert row.counts is None
    resumed = _sequence(SamplingSpec(max_tokens=9, seed=4), prompt=(5, 6, 7, 9)).sampling_row()
    assert (resumed.seed, resumed.position) == (row.seed, row.position)


def test_penalty_counts_exist_only_where_a_penalty_needs_them() -> None:
    """Prompt tokens are seen, completion tokens are counted."""
    sequence = _sequence(SamplingSpec(max_tokens=9, presence_penalty=0.5))
    sequence.append_token(6)
    sequence.append_token(9)
    counts = sequence.sampling_row().counts
    assert counts is not None
    seen = dict(zip(counts.token_ids.tolist(), counts.counts.tolist(), strict=True))
    assert seen == {5: 0, 6: 1, 7: 0, 9: 1}


def test_a_request_without_a_seed_gets_its_own() -> None:
    """Two requests do not share random numbers; one request keeps its seed."""
    first, second = (_sequence(SamplingSpec(max_tokens=9)) for _ in range(2))
    assert first.seed != second.seed
    assert first.sampling_row().seed == first.sampling_row().seed


@pytest.mark.parametrize(
    ("changes", "param", "message"),
    [
        ({"prompt_token_ids": ()}, "prompt", "empty"),
        ({"prompt_token_ids": (3,) * 10}, "prompt", "has 10 tokens"),
        ({"prompt_token_ids": (3, 50)}, "prompt", r"outside 0\.\.49"),
        ({"prompt_token_ids": (-1,)}, "prompt", r"outside 0\.\.49"),
        ({"deadline_s": 0.0}, "deadline_s", "above 0"),
        ({"deadline_s": math.nan}, "deadline_s", "above 0"),
        ({"sampling": SamplingSpec(max_tokens=1, temperature=math.nan)}, "temperature", "between 0.0 and 2.0"),
        ({"sampling": SamplingSpec(max_tokens=0)}, "max_tokens", "between 1"),
        ({"sampling": SamplingSpec(max_tokens=1, stop_token_ids=(50,))}, "stop_token_ids", "outside"),
    ],
)
def test_requests_that_can_never_run_are_rejected_by_field(
    changes: dict[str, object], param: str, message: str
) -> None:
    """The field to blame is named."""
    good = GenerateRequest("r", (3,) * 9, SamplingSpec(max_tokens=1))
    check_request(good, max_model_len=10, vocab_size=50)
    with pytest.raises(RequestRejected, match=message) as caught:
        check_request(replace(good, **changes), max_model_len=10, vocab_size=50)  # type: ignore[arg-type]
    assert caught.value.param == param
