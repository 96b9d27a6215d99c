"""The cluster as a user and an operator meet it: streams, lost processes, leavers, shutdown. The last test ends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.fakes.checkpoint import write_checkpoint
from tests.fakes.configs import tiny_config
from tests.live.cluster_process import ClusterProcess
from tests.live.conftest import ENDLESS


def stream(client: openai.OpenAI, max_tokens: int) -> Any:
    """A greedy stream that goes on after the end-of-sequence token, so that its length is known."""
    return client.completions.create(
        model="tiny",
        prompt=[5, 6, 7],
        max_tokens=max_tokens,
        temperature=0,
        stream=True,
        extra_body={"ignore_eos": True},
    )


def finish_of(chunks: Any) -> str:
    """The finish reason of a stream that is read to its end."""
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert len(reasons) == 1
    return str(reasons[0])


def test_a_completion_streams_over_http(client: openai.OpenAI) -> None:
    """The official client gets a stream in several chunks and the same text without a stream."""
    texts = [choice.text for chunk in stream(client, 16) for choice in chunk.choices]
    whole = client.completions.create(
        model="tiny", prompt=[5, 6, 7], max_tokens=16, temperature=0, extra_body={"ignore_eos": True}
    )
    assert "".join(texts) == whole.choices[0].text
    assert len(texts) > 1
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 16


def test_a_chat_completion_answers(client: openai.OpenAI) -> None:
    """Template, tokenizer and engine together."""
    answer = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "Hello"}], max_tokens=4)
    assert answer.choices[0].finish_reason in ("length", "stop")


def test_bad_requests_leave_the_cluster_alone(client: openai.OpenAI) -> None:
    """4xx with a body of ours, through Serve's proxy, and the next request is answered."""
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="x")
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="tiny", prompt=[10**6])
    assert finish_of(stream(client, 2)) == "length"


def test_clients_do_not_steer_the_proxy(cluster: ClusterProcess) -> None:
    """One id in the answer, the gateway's own; the client's is told apart; its time-out for the proxy is not obeyed."""
    headers = {"x-request-id": "mine-1", "x-request-timeout-seconds": "0.001"}
    body = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 16, "ignore_eos": True}
    answer = httpx.post(f"{cluster.url}/v1/completions", json=body, headers=headers, timeout=60)
    assert answer.status_code == 200
    (request_id,) = answer.headers.get_list("x-request-id")
    assert answer.json()["id"] == f"cmpl-{request_id}"
    assert answer.headers.get_list("x-client-request-id") == ["mine-1"]
    plain = httpx.get(f"{cluster.url}/health")
    assert len(plain.headers.get_list("x-request-id")) == 1
    assert "x-client-request-id" not in plain.headers


def test_a_second_cluster_on_the_same_port_is_refused(cluster: ClusterProcess, tmp_path: Path) -> None:
    """Ray's proxies would share the port, and each cluster would answer the other's requests."""
    write_checkpoint(tmp_path / "tiny", tiny_config(), seed=0)
    second = ClusterProcess(tmp_path, tmp_path / "tiny", experts={"ep_size": 2}, gateway={"port": cluster.port})
    try:
        assert second.wait(60) == 1
        assert f"port {cluster.port} of 127.0.0.1 is in use" in second.output()
    finally:
        second.close()


def test_a_client_that_leaves_is_aborted(client: openai.OpenAI) -> None:
    """Only one sequence runs at a time, and the first would run longer than this test may: the second needs its end."""
    endless = stream(client, ENDLESS)
    next(iter(endless))
    endless.close()
    assert finish_of(stream(client, 4)) == "length"


def test_a_killed_expert_costs_a_pause_or_a_clear_error(cluster: ClusterProcess, client: openai.OpenAI) -> None:
    """Mid-request: the stream ends by itself, complete or with an error that says to try again."""
    chunks = iter(stream(client, 600))
    next(chunks)
    killed = cluster.kill_replica("ExpertActor")
    try:
        end = finish_of(chunks)
    except openai.APIError as error:
        end = str(error)
    assert end == "length" or "again" in end
    cluster.wait_ready()
    assert killed not in cluster.replica_pids("ExpertActor")
    assert finish_of(stream(client, 4)) == "length"


def test_a_killed_attention_actor_ends_its_streams_with_an_error(
    cluster: ClusterProcess, client: openai.OpenAI
) -> None:
    """The stream says so and ends; it never hangs. A replacement serves later."""
    chunks = iter(stream(client, ENDLESS))
    next(chunks)
    cluster.kill_replica("AttentionActor")
    with pytest.raises(openai.APIError, match="again"):
        finish_of(chunks)
    cluster.wait_ready()
    assert finish_of(stream(client, 4)) == "length"


def test_tokens_flow_while_the_coordinator_is_gone(cluster: ClusterProcess, client: openai.OpenAI) -> None:
    """It is not on the token path: a running stream and a new one end well. Its successor knows the members again."""
    chunks = iter(stream(client, 300))
    next(chunks)
    cluster.kill_replica("Coordinator")
    assert finish_of(chunks) == "length"
    assert finish_of(stream(client, 4)) == "length"
    # A rank can only be taken over if the new coordinator knows who holds the others.
    cluster.kill_replica("ExpertActor")
    cluster.wait_ready(is_ready=False)
    cluster.wait_ready()
    assert finish_of(stream(client, 4)) == "length"


def test_sigterm_drains(cluster: ClusterProcess, client: openai.OpenAI) -> None:
    """The last test: a running stream ends complete, the command exits 0, no process of the cluster is left."""
    chunks = iter(stream(client, 200))
    next(chunks)
    cluster.terminate()
    assert finish_of(chunks) == "length"
    assert cluster.wait(60) == 0
    for deployment in ("Gateway", "AttentionActor", "ExpertActor", "Coordinator"):
        assert cluster.replica_pids(deployment) == []
