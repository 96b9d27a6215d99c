"""Memory of a rank after loading: resident size against the bytes of its shard, in fresh processes.

    python -m ops.bench.memory

Writes a random checkpoint of about 2 GB to a temporary folder. The limit is 1.15 x shard bytes + 450 MB: the weights
once, and an interpreter with torch; a second copy of the shard, or mapped pages of the whole checkpoint, breaks it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from actors.kernels.contract import ExpertWeights
from actors.weights.check import check_checkpoint
from actors.weights.loader import load_attention_weights, load_expert_weights
from actors.weights.shard import AttentionTierWeights
from actors.weights.source import SafetensorsSource
from routing.experts import linear_expert_map
from tests.fakes.checkpoint import write_checkpoint
from tests.fakes.configs import Fields, tiny_config

EP_SIZE = 8
LIMIT_FACTOR, LIMIT_BYTES = 1.15, 450e6
CHILD_DEADLINE_S = 300.0
ROLES = ("expert", "attention")


@dataclass(frozen=True)
class Measurement:
    """One rank. rss_bytes: resident after loading. peak_bytes: the most that was resident at any time."""

    role: str
    shard_bytes: int
    rss_bytes: int
    peak_bytes: int

    @property
    def limit_bytes(self) -> int:
        return int(LIMIT_FACTOR * self.shard_bytes + LIMIT_BYTES)


def main() -> int:
    """Print a table and a line of JSON. Exit status 1 when a rank exceeds its limit."""
    parser = argparse.ArgumentParser(description="Memory of one expert rank and one attention rank.")
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        print(json.dumps(asdict(_measure(options.role, options.folder))))
        return 0
    with tempfile.TemporaryDirectory(prefix="step35-memory-") as folder:
        write_checkpoint(Path(folder), _fields(), max_shard_bytes=500_000_000)
        measurements = [_measure_in_child(role, folder) for role in ROLES]
    _report(measurements)
    return int(any(m.rss_bytes > m.limit_bytes for m in measurements))


def _fields() -> Fields:
    """1.6 GB of routed experts and 0.4 GB of everything else."""
    return tiny_config(
        hidden_size=1024,
        intermediate_size=4096,
        vocab_size=65536,
        num_hidden_layers=10,
        num_nextn_predict_layers=0,
        num_attention_heads=16,
        num_attention_groups=8,
        head_dim=64,
        moe_num_experts=64,
        moe_intermediate_size=512,
        share_expert_dim=512,
    )


def _measure_in_child(role: str, folder: str) -> Measurement:
    """Another process, because this one has written the checkpoint and holds memory of its own."""
    command = [sys.executable, "-m", "ops.bench.memory", "--role", role, "--folder", folder]
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=CHILD_DEADLINE_S)
    return Measurement(**json.loads(result.stdout))


def _measure(role: str, folder: Path) -> Measurement:
    """Load as an actor does: check, open, load, close. The weights are alive while memory is read."""
    summary = check_checkpoint(folder, EP_SIZE)
    config = summary.config
    held: AttentionTierWeights | list[ExpertWeights]
    with SafetensorsSource(folder) as source:
        if role == "expert":
            expert_map = linear_expert_map(len(config.moe_layers), config.num_experts, EP_SIZE)
            held, shard_bytes = load_expert_weights(source, config, expert_map, ep_rank=0), summary.rank_bytes[0]
        else:
            held, shard_bytes = load_attention_weights(source, config), summary.attention_bytes
    rss_bytes, peak_bytes = _status_bytes("VmRSS"), _status_bytes("VmHWM")
    del held
    return Measurement(role, shard_bytes, rss_bytes, peak_bytes)


def _status_bytes(field: str) -> int:
    """A size of this process as Linux counts it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {field}")


def _report(measurements: list[Measurement]) -> None:
    print(f"{'rank':<10} {'shard MB':>9} {'RSS MB':>9} {'peak MB':>9} {'limit MB':>9}  verdict")
    for m in measurements:
        sizes = (m.shard_bytes, m.rss_bytes, m.peak_bytes, m.limit_bytes)
        verdict = "ok" if m.rss_bytes <= m.limit_bytes else "over"
        print(f"{m.role:<10} " + " ".join(f"{size / 1e6:>9.1f}" for size in sizes) + f"  {verdict}")
    print(json.dumps({"memory": [{**asdict(m), "limit_bytes": m.limit_bytes} for m in measurements]}))


if __name__ == "__main__":
    sys.exit(main())
