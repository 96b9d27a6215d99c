"""What the nano model learns from: what counts in a conversation, who may see it, and how documents fill rows."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from cluster.api.prepare import plan_chat
from cluster.api.schema import ChatBody
from cluster.api.served_model import ServedModel, load_served_model
from cluster.api.settings import ApiLimits
from ops.nano.checkpoint_files import write_json
from ops.nano.config import nano_fields
from ops.nano.data import small_talk, turns
from ops.nano.data.conversation import Conversation, Message, assistant, question, system, tool_response, user
from ops.nano.data.mixture import LONG_CHAT, SHARES, SKILLS, Mixture, generate
from ops.nano.data.packing import MAX_WAITING, batches
from ops.nano.data.python_texts import CODE, PROSE, Library, load_library
from ops.nano.data.rendering import PROMPT_WEIGHT, Document, Renderer, chat_text
from ops.nano.dense import Batch
from ops.nano.tokenizer import BOS, DIGITS_BY_ONE, EOS, train_tokenizer, write_tokenizer_files

LIBRARY = Library(code=("x = 1\n" * 2000,), prose=("It rains.\n" * 2000,))
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    chats = (generate(skill, random.Random(seed), held_out=False) for skill in SKILLS for seed in range(10))
    return train_tokenizer([chat_text(chat.messages, chat.tools) for chat in chats], 700, DIGITS_BY_ONE)


@pytest.fixture(scope="module")
def renderer(tokenizer: Tokenizer) -> Renderer:
    return Renderer(tokenizer)


@pytest.fixture(scope="module")
def served(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    """The tokenizer and the chat template as the API loads them."""
    folder: Path = tmp_path_factory.mktemp("served")
    write_json(folder / "config.json", nano_fields(eos_token_id=[1, 2]))
    write_tokenizer_files(folder, tokenizer.to_str(), max_positions=4096)
    return load_served_model(folder)


class TestRendering:
    def test_only_the_answer_counts_fully(self, tokenizer: Tokenizer, renderer: Renderer) -> None:
        """Reasoning, answer and the end of the turn count 1, what is in front of them 0.1, the first token nothing."""
        document = renderer.conversation(question("any", "How many?", "One and one is two.", "Two."))
        assert learnt(tokenizer, document) == ["One and one is two.\n</think>\nTwo.<|im_end|>"]
        assert set(document.weights) == {0.0, PROMPT_WEIGHT, 1.0}
        assert document.weights.count(0.0) == 1
        assert document.weights[0] == 0.0
        assert PROMPT_WEIGHT == 0.1

    def test_an_answer_without_its_reasoning_is_not_learnt(self, tokenizer: Tokenizer, renderer: Renderer) -> None:
        """Earlier turns have lost their reasoning in the prompt, so they count as prompt."""
        messages = (
            *(system("Be brief."), user("Name?"), assistant("I have a name.", "Nano.")),
            *(user("Really?"), assistant("The user doubts.", "Yes.")),
        )
        document = renderer.conversation(Conversation("any", messages))
        assert "I have a name." not in tokenizer.decode(document.token_ids, skip_special_tokens=False)
        assert learnt(tokenizer, document) == ["The user doubts.\n</think>\nYes.<|im_end|>"]

    def test_every_step_of_a_tool_turn_is_learnt(self, tokenizer: Tokenizer, renderer: Renderer) -> None:
        """The call and the answer after its result, but not the result."""
        messages = (
            *(user("Weather?"), assistant("I call weather.", calls=[("weather", {"city": "Rome"})])),
            *(tool_response("It rains."), assistant("The tool says rain.", "Rain.")),
        )
        call, answer = learnt(tokenizer, renderer.conversation(Conversation("any", messages, (WEATHER,))))
        assert call.startswith("I call weather.\n</think>\n<tool_call>\n<function=weather>")
        assert call.endswith("Rome\n</parameter>\n</function>\n</tool_call><|im_end|>")
        assert answer == "The tool says rain.\n</think>\nRain.<|im_end|>"

    @pytest.mark.parametrize(("is_whole", "end"), [(True, EOS), (False, "")])
    def test_plain_text_counts_everywhere(
        self, tokenizer: Tokenizer, renderer: Renderer, is_whole: bool, end: str
    ) -> None:
        """Text for completion begins a sequence; only a whole one ends it."""
        document = renderer.plain("It rains.\n", is_whole=is_whole)
        assert tokenizer.decode(document.token_ids, skip_special_tokens=False) == f"{BOS}It rains.\n{end}"
        assert document.weights == [0.0] + [1.0] * (len(document.token_ids) - 1)

    @pytest.mark.parametrize("skill", SKILLS)
    def test_training_sees_the_tokens_of_serving(self, skill: str, renderer: Renderer, served: ServedModel) -> None:
        """The API makes the same token ids of the same messages, and the document goes on from exactly these."""
        for seed in range(25):
            conversation = generate(skill, random.Random(seed), held_out=False)
            history = conversation.messages[:-1]
            prompt = renderer.prompt(history, conversation.tools)
            assert prompt == served_prompt(served, history, conversation.tools)
            document = renderer.conversation(conversation)
            assert document.token_ids[: len(prompt)] == prompt
            assert set(document.weights[len(prompt) : -1]) == {1.0}


def learnt(tokenizer: Tokenizer, document: Document) -> list[str]:
    """The runs of text that count fully."""
    runs: list[list[int]] = [[]]
    for token_id, weight in zip(document.token_ids, document.weights, strict=True):
        if weight == 1.0:
            runs[-1].append(token_id)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run, skip_special_tokens=False) for run in runs if run]


def served_prompt(served: ServedModel, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> list[int]:
    """What the API asks the engine for a request with these messages."""
    body = {"model": "nano", "messages": as_sent(messages)} | ({"tools": list(tools)} if tools else {})
    (plan,) = plan_chat(ChatBody.model_validate(body), served, ApiLimits(), "r")
    return list(plan.request.prompt_token_ids)


def as_sent(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages in the form of the OpenAI API: arguments as text, and ids that tie results to calls."""
    sent, call_ids = [], iter(range(0))
    for message in messages:
        message = dict(message)
        if message["role"] == "tool":
            message["tool_call_id"] = f"call_{next(call_ids)}"
        if "tool_calls" in message:
            functions = [call["function"] for call in message["tool_calls"]]
            call_ids = iter(range(len(functions)))
            message["tool_calls"] = [
                {
                    "id": f"call_{number}",
                    "type": "function",
                    "function": function | {"arguments": json.dumps(function["arguments"])},
                }
                for number, function in enumerate(functions)
            ]
        sent.append(message)
    return sent


class Recorder(Renderer):
    """Keeps what the mixture asks it to render, and renders nothing."""

    def __init__(self) -> None:
        self.conversations: list[Conversation] = []
        self.texts: list[str] = []

    def conversation(self, conversation: Conversation) -> Document:
        self.conversations.append(conversation)
        return Document([0], [0.0])

    def plain(self, text: str, *, is_whole: bool = True) -> Document:
        self.texts.append(text)
        return Document([0], [0.0])


def recorded(num_documents: int, *, long: bool = False, seed: int = 0) -> Recorder:
    recorder = Recorder()
    documents = Mixture(recorder, LIBRARY).documents(random.Random(seed), long=long)
    for _ in islice(documents, num_documents):
        pass
    return recorder


def questions(conversation: Conversation) -> tuple[str, ...]:
    return tuple(message["content"] for message in conversation.messages if message["role"] == "user")


class TestSplit:
    @pytest.mark.parametrize("skill", SKILLS)
    def test_no_question_is_on_both_sides(self, skill: str) -> None:
        """Whatever the seeds, what evaluation asks is never what a training conversation asked."""
        training = {questions(generate(skill, random.Random(seed), held_out=False)) for seed in range(2000)}
        held_out = {questions(generate(skill, random.Random(seed), held_out=True)) for seed in range(300)}
        assert training.isdisjoint(held_out)
        assert len(training) > len(held_out) > 30

    def test_training_never_asks_what_is_held_out(self) -> None:
        """Not in long chats either. Small talk and the parts of longer conversations are too few to be only here."""
        chats = [*recorded(2000).conversations, *recorded(200, long=True).conversations]
        training = {asked for conversation in chats for asked in questions(conversation)}
        for skill in SKILLS.keys() - {small_talk.SKILL, turns.SKILL}:
            for seed in range(200):
                assert questions(generate(skill, random.Random(seed), held_out=True))[0] not in training

    def test_library_texts_are_on_one_side(self) -> None:
        """No file, passage or docstring is on both sides, nor inside a training file; about one in 16 is held out."""
        training, held_out = load_library(held_out=False), load_library(held_out=True)
        assert set(training.code).isdisjoint(held_out.code)
        assert set(training.prose).isdisjoint(held_out.prose)
        everything = "\0".join(training.code)
        assert not any(text in everything for text in held_out.prose)
        for ours, theirs in ((training.code, held_out.code), (training.prose, held_out.prose)):
            assert 1 / 32 < len(theirs) / (len(ours) + len(theirs)) < 1 / 8


class TestMixture:
    def test_every_kind_has_its_share(self) -> None:
        """Documents of each kind come as often as the table says, within four standard deviations."""
        recorder = recorded(4000)
        kinds = Counter(conversation.skill for conversation in recorder.conversations)
        kinds[CODE] = sum("x = 1" in text for text in recorder.texts)
        kinds[PROSE] = len(recorder.texts) - kinds[CODE]
        assert kinds.keys() == SHARES.keys()
        for kind, share in SHARES.items():
            expected = 4000 * share / sum(SHARES.values())
            assert abs(kinds[kind] - expected) <= 4 * expected**0.5, kind

    def test_long_documents_are_whole_chats(self) -> None:
        """Several conversations behind one another, with a system message only in front; tools stay as they are."""
        chats = recorded(300, long=True).conversations
        roles = [[message["role"] for message in chat.messages] for chat in chats]
        assert not any("system" in rest for _, *rest in roles)
        lengths = [turn.count("user") for turn, chat in zip(roles, chats, strict=True) if not chat.tools]
        assert sum(lengths) / len(lengths) > LONG_CHAT / 3
        assert max(lengths) >= LONG_CHAT
        assert all(len(questions(chat)) == 1 for chat in chats if chat.tools)

    def test_some_short_documents_are_joined(self) -> None:
        """A few in a hundred of the conversations without tools come behind others."""
        chats = [chat for chat in recorded(3000).conversations if chat.skill not in (turns.SKILL, "tools")]
        num_joined = sum(len(questions(chat)) > 1 for chat in chats)
        assert 0.03 < num_joined / len(chats) < 0.09

    def test_the_seed_decides_everything(self, renderer: Renderer) -> None:
        """The same seed makes the same batches, another one others."""

        def batch(seed: int) -> Batch:
            documents = Mixture(renderer, LIBRARY).documents(random.Random(seed))
            return list(islice(batches(documents, 2, 256), 2))[1]

        first, again, other = batch(1), batch(1), batch(2)
        assert torch.equal(first.token_ids, again.token_ids)
        assert torch.equal(first.weight, again.weight)
        assert not torch.equal(first.token_ids, other.token_ids)


ROW, NUM_ROWS, NUM_BATCHES = 40, 3, 10


@dataclass(frozen=True)
class Placed:
    """A document as it lies in a row. index: which of the documents it is, in the order they were taken."""

    index: int
    token_ids: list[int]
    weights: list[float]
    positions: list[int]


def packed(seed: int) -> tuple[list[Document], list[Batch]]:
    """Documents of up to 60 tokens, no token of which comes twice, in the order they were taken, and the batches."""
    lengths, next_id = random.Random(seed), count(1)
    made: list[Document] = []

    def documents() -> Iterator[Document]:
        while True:
            length = lengths.randrange(1, 61)
            made.append(Document([next(next_id) for _ in range(length)], [0.0] + [0.5] * (length - 1)))
            yield made[-1]

    return made, list(islice(batches(documents(), NUM_ROWS, ROW), NUM_BATCHES))


def rows_of(made: list[Document], packed_batches: list[Batch]) -> list[list[Placed]]:
    """What lies in each row, in order."""
    index_of = {document.token_ids[0]: index for index, document in enumerate(made)}
    rows = []
    for batch in packed_batches:
        for token_ids, weight, position, document in zip(
            batch.token_ids, batch.weight, batch.position, batch.document, strict=True
        ):
            places = [document == number for number in range(int(document.max()) + 1)]
            rows.append(
                [
                    Placed(
                        index_of[int(token_ids[place][0])],
                        token_ids[place].tolist(),
                        weight[place].tolist(),
                        position[place].tolist(),
                    )
                    for place in places
                ]
            )
    return rows


class TestPacking:
    @pytest.mark.parametrize("seed", range(10))
    def test_every_document_is_in_one_piece(self, seed: int) -> None:
        """Each comes once, with its weights and with positions from 0; one longer than a row is cut."""
        made, packed_batches = packed(seed)
        placed = [document for row in rows_of(made, packed_batches) for document in row]
        for document in placed:
            length = min(ROW, len(made[document.index].token_ids))
            assert document.token_ids == made[document.index].token_ids[:length]
            assert document.weights == made[document.index].weights[:length]
            assert document.positions == list(range(length))
        assert len({document.index for document in placed}) == len(placed)
        assert any(len(document.token_ids) > ROW for document in made), "the case was meant to cut"

    @pytest.mark.parametrize("seed", range(10))
    def test_nothing_is_lost(self, seed: int) -> None:
        """What was taken and is in no row waits, a few documents at most, and each row begins with the oldest."""
        made, packed_batches = packed(seed)
        rows = rows_of(made, packed_batches)
        unplaced = set(range(len(made)))
        for row in rows:
            assert row[0].index == min(unplaced)
            unplaced -= {document.index for document in row}
        assert len(unplaced) <= MAX_WAITING

    def test_little_is_padding(self) -> None:
        """Padding is a document of its own without weight, less than a tenth of all."""
        packed_batches = [batch for seed in range(10) for batch in packed(seed)[1]]
        padding = torch.stack([batch.document < 0 for batch in packed_batches])
        weights = torch.stack([batch.weight for batch in packed_batches])
        assert not weights[padding].any()
        assert 0 < padding.float().mean() < 0.1
