"""Replica counts, transport and keys are configuration: two attention actors, two gateways, gloo, API keys."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.fakes.checkpoint import write_checkpoint
from tests.fakes.configs import tiny_config
from tests.live.cluster_process import ClusterProcess

KEY = "a-key-for-this-test-alone"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterProcess]:
    folder: Path = tmp_path_factory.mktemp("replicas")
    write_checkpoint(folder / "tiny", tiny_config(), seed=0)
    keys = folder / "keys"
    keys.write_text(f"# one key a line\n{KEY}\n", encoding="utf-8")
    process = ClusterProcess(
        folder,
        folder / "tiny",
        transport="gloo",
        deterministic=True,
        attention={"num_replicas": 2, "engine": {"max_running": 4, "max_step_tokens": 32}},
        experts={"ep_size": 2, "num_redundant_slots": 1},
        gateway={"num_replicas": 2, "api_keys_file": str(keys)},
    )
    try:
        process.wait_ready()
        yield process
    finally:
        process.close()


def test_there_are_as_many_processes_as_asked_for(cluster: ClusterProcess) -> None:
    """Two attention actors, two expert ranks, two gateways, each a process of its own."""
    counts = {name: len(cluster.replica_pids(name)) for name in ("AttentionActor", "ExpertActor", "Gateway")}
    assert counts == {"AttentionActor": 2, "ExpertActor": 2, "Gateway": 2}


async def test_both_attention_actors_answer_alike(cluster: ClusterProcess) -> None:
    """In deterministic mode every one of many concurrent requests gets the same answer, whoever serves it."""
    async with openai.AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key=KEY, max_retries=0, timeout=60) as client:
        answers = await asyncio.gather(
            *(
                client.completions.create(model="tiny", prompt=[5, 6, 7], max_tokens=12, temperature=0.8, seed=4)
                for _ in range(8)
            )
        )
    assert len({answer.choices[0].text for answer in answers}) == 1


def test_nobody_enters_without_a_key(cluster: ClusterProcess) -> None:
    """Through Serve's proxy as in the app: 401 without a key and with a wrong one, health stays open."""
    for headers in ({}, {"authorization": "Bearer wrong"}):
        assert httpx.get(f"{cluster.url}/v1/models", headers=headers).status_code == 401
    assert httpx.get(f"{cluster.url}/v1/models", headers={"authorization": f"Bearer {KEY}"}).status_code == 200
    assert httpx.get(f"{cluster.url}/health").status_code == 200
