"""One small cluster on this machine for the whole tier: one attention actor, two expert ranks, a tiny random model."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.fakes.checkpoint import write_checkpoint
from tests.fakes.configs import tiny_config
from tests.live.cluster_process import ClusterProcess

# Far more tokens than any test has time to generate: a stream of this length ends only if something ends it.
ENDLESS = 30_000


@pytest.fixture(scope="session")
def live_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterProcess]:
    """max_running is 1, so that a sequence that was not aborted keeps the next one from starting."""
    folder = tmp_path_factory.mktemp("live")
    write_checkpoint(folder / "tiny", tiny_config(max_position_embeddings=32_768), seed=0)
    engine = {"max_running": 1, "max_waiting": 4, "max_step_tokens": 64, "kv_cache_tokens": 32_768}
    cluster = ClusterProcess(
        folder,
        folder / "tiny",
        attention={"engine": {**engine, "recovery_timeout_s": 80}},
        experts={"ep_size": 2},
    )
    try:
        cluster.wait_ready()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def cluster(live_cluster: ClusterProcess) -> ClusterProcess:
    """The cluster, ready again after whatever the test before has killed."""
    live_cluster.wait_ready()
    return live_cluster


@pytest.fixture
def client(cluster: ClusterProcess) -> Iterator[openai.OpenAI]:
    """The official client; it must not hide a failure by trying again."""
    with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0, timeout=100) as made:
        yield made
