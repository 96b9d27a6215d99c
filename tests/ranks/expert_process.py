"""One expert rank as a process of its own, without Ray: told what to do by lines of JSON on its standard input.

Writes {"endpoint": ...} once it serves; reads {"attention": [...], "shards": {...}}; ends at the end of its input.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from actors.attention.config import AttentionConfig
from actors.expert.actor import ExpertActor
from actors.expert.config import ExpertConfig
from actors.frame_limits import frame_limits
from actors.weights.check import read_model_config
from routing.experts import ExpertMap
from routing.transport.endpoint import Endpoint
from routing.transport.select import TransportOptions, open_expert_port


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--ep-rank", type=int, required=True)
    parser.add_argument("--transport", required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    job = json.loads(sys.stdin.readline())
    engine = AttentionConfig.model_validate(job["engine"])
    limits = frame_limits(engine, read_model_config(options.checkpoint))
    port = open_expert_port(
        options.transport, ep_rank=options.ep_rank, limits=limits, options=TransportOptions(timeout_s=20.0)
    )
    config = ExpertConfig(param_dtype=engine.param_dtype, kernels=engine.kernels, deterministic=engine.deterministic)
    actor = ExpertActor(config, options.checkpoint, ExpertMap.from_dict(job["expert_map"]), options.ep_rank, port)
    actor.start()
    try:
        sys.stdout.write(json.dumps({"endpoint": asdict(port.endpoint)}) + "\n")
        sys.stdout.flush()
        for line in sys.stdin:
            view = json.loads(line)
            shards = {int(ep_rank): Endpoint(**fields) for ep_rank, fields in view["shards"].items()}
            actor.reconcile([Endpoint(**fields) for fields in view["attention"]], shards)
    finally:
        actor.close()


if __name__ == "__main__":
    main()
