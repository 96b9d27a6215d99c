"""The command line: `step35 serve` runs a cluster until a signal, `step35 check` looks at a checkpoint, and
`step35 experts` watches and steers a running cluster's expert tier.

Flags name a configuration file or a role's size, never a setting: settings live in `cluster.config`.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Self

import typer
from rich.console import Console
from rich.table import Table

from actors.errors import CheckpointError
from actors.weights.check import CheckpointSummary, check_checkpoint
from cluster.admin.client import AdminClient
from cluster.admin.token import ensure_token, read_token
from cluster.api.served_model import load_served_model
from cluster.config import ClusterConfig, load_admin, load_config
from cluster.errors import AdminUnreachable, ConfigurationError, StartFailed
from cluster.experts_status import ExpertStatus, ExpertTierStatus, Proposal
from cluster.experts_table import expert_line, experts_view, proposal_line

app = typer.Typer(
    help="Serve Step-3.5-Flash on Ray, with attention and experts as separate deployments.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
experts = typer.Typer(help="Watch and steer the expert tier of a running cluster.", invoke_without_command=True)
app.add_typer(experts, name="experts")
console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

DRAINING = "draining: running requests end, then the cluster stops (Ctrl-C again exits at once)"
EXIT_FAILED = 1
EXIT_NOW = 130
GIB = 2**30

Checkpoint = Annotated[Path | None, typer.Argument(help="Checkpoint folder; overrides the configuration's.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file; see cluster/config.py for its fields.")]
LogLevel = Annotated[str | None, typer.Option("--log-level", help="debug, info, warning or error.")]
Folder = Annotated[Path, typer.Argument(help="Checkpoint folder: config.json, safetensors, tokenizer.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print everything as JSON, for other programs.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
Layer = Annotated[int, typer.Argument(help="Number of the layer, as the table shows it.", min=0)]
Expert = Annotated[int, typer.Argument(help="Number of the logical expert.", min=0)]
Ranks = Annotated[str | None, typer.Option("--ranks", help="EP ranks for its copies, as 0,3.")]
EpSize = Annotated[int, typer.Option("--ep-size", help="Number of expert ranks the experts are divided over.")]


@app.command()
def serve(checkpoint: Checkpoint = None, config: ConfigFile = None, log_level: LogLevel = None) -> None:
    """Start a cluster and serve the OpenAI API until Ctrl-C or SIGTERM, then drain and exit 0.

    Without a configuration everything runs on this machine: one attention actor, eight expert actors, a gateway on
    127.0.0.1:8000. Every field can also be set by a variable, such as STEP35__ATTENTION__NUM_REPLICAS=2.
    A second Ctrl-C exits at once.
    """
    with _failures_shown():
        settings = load_config(config, overrides={"checkpoint": checkpoint, "log_level": log_level})
        _serve(settings)


@app.command()
def check(checkpoint: Folder, ep_size: EpSize = 8) -> None:
    """Check a checkpoint without loading it, and show what each rank would hold. Exit code 1 lists what is wrong."""
    with _failures_shown():
        summary = _check_all(checkpoint, ep_size)
    console.print(
        f"{checkpoint}: sound. {summary.num_parameters:,} parameters, {summary.num_tensors} tensors, "
        f"{_size(summary.num_bytes)}, {summary.dtype}, {summary.layout.value} experts"
    )
    console.print(_ranks_table(summary))
    if summary.config.mtp_layers:
        num_modules = len(summary.config.mtp_layers)
        size = _size(summary.mtp_bytes)
        console.print(f"{num_modules} draft modules: {size} more for each attention rank, unless mtp.mode is off")


@experts.callback()
def show_experts(context: typer.Context, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Show the load of every expert rank, hot experts and their copies, confidence, and what rebalancing did.

    Speaks to the admin port of a running cluster; --config names the file that the cluster was started with.
    """
    context.obj = config
    if context.invoked_subcommand is None:
        with _failures_shown():
            fields = _admin(config).call("GET", "/admin/experts")
        if as_json:
            typer.echo(json.dumps(fields, indent=1))
        else:
            console.print(*experts_view(ExpertTierStatus.from_dict(fields)), sep="\n")


@experts.command()
def rebalance(context: typer.Context, dry_run: DryRun = False) -> None:
    """Move and copy experts to where the load asks for them, now, however little is gained."""
    fields = _order(context, "POST", "/admin/experts/rebalance", {"dry_run": dry_run})
    console.print(proposal_line(Proposal(**fields)), soft_wrap=True)


@experts.command()
def pin(context: typer.Context, layer: Layer, expert: Expert, ranks: Ranks = None) -> None:
    """Keep an expert's copies where they are, or on the --ranks given; the next rebalance brings them there."""
    wanted = None if ranks is None else _ranks(ranks)
    fields = _order(context, "PUT", f"/admin/experts/{layer}/{expert}/pin", {"ep_ranks": wanted})
    console.print(expert_line(_expert(fields)))


@experts.command()
def unpin(context: typer.Context, layer: Layer, expert: Expert) -> None:
    """Leave an expert's copies to the balancer again."""
    console.print(expert_line(_expert(_order(context, "DELETE", f"/admin/experts/{layer}/{expert}/pin"))))


@experts.command()
def pause(context: typer.Context) -> None:
    """Let no rebalance begin by itself. One that is under way is finished; orders are still taken."""
    _order(context, "PUT", "/admin/balancer", {"paused": True})
    console.print("the balancer is paused")


@experts.command()
def resume(context: typer.Context) -> None:
    """Let the balancer begin rebalances again, as its mode says."""
    fields = _order(context, "PUT", "/admin/balancer", {"paused": False})
    console.print(f"the balancer goes on, mode {fields['mode']}")


def main() -> None:
    """Entry point of the `step35` command."""
    app()


def _order(context: typer.Context, method: str, path: str, body: object = None) -> dict[str, Any]:
    with _failures_shown():
        fields: dict[str, Any] = _admin(context.obj).call(method, path, body)
    return fields


def _admin(config: Path | None) -> AdminClient:
    """A client of the cluster that this configuration describes. Raises ConfigurationError."""
    admin = load_admin(config)
    return AdminClient(admin.url, read_token(admin.token_file))


def _ranks(text: str) -> list[int]:
    """Raises BadParameter."""
    parts = text.split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise typer.BadParameter(f"ranks are numbers with commas between them, as 0,3; got {text!r}")
    return [int(part) for part in parts]


def _expert(fields: dict[str, Any]) -> ExpertStatus:
    return ExpertStatus(**{**fields, "ep_ranks": tuple(fields["ep_ranks"])})


def _check_all(checkpoint: Path, ep_size: int) -> CheckpointSummary:
    """Weights, and what the gateway needs: tokenizer and chat template. Raises CheckpointError with all problems."""
    problems: list[str] = []
    try:
        load_served_model(checkpoint)
    except CheckpointError as error:
        problems += error.problems
    try:
        summary = check_checkpoint(checkpoint, ep_size)
    except CheckpointError as error:
        problems = [*error.problems, *problems]
    if problems:
        # Both read config.json, and say the same of it.
        raise CheckpointError(str(checkpoint), tuple(dict.fromkeys(problems)))
    return summary


def _ranks_table(summary: CheckpointSummary) -> Table:
    """What each rank reads of the files, and what it then holds in memory with param_dtype auto."""
    table = Table("rank", "holds", "reads", "in memory")
    sizes = _size(summary.attention_bytes), _size(summary.held_attention_bytes)
    table.add_row("attention (each)", f"{summary.config.num_layers} layers", *sizes)
    experts = f"{summary.experts_per_rank} experts in each of {len(summary.config.moe_layers)} MoE layers"
    for ep_rank, (read, held) in enumerate(zip(summary.rank_bytes, summary.held_rank_bytes, strict=True)):
        table.add_row(f"expert {ep_rank}", experts, _size(read), _size(held))
    return table


def _serve(config: ClusterConfig) -> None:
    # Imported late: Ray takes seconds, and a wrong flag should be told at once.
    from cluster.deploy import MapShape
    from cluster.progress import progress_line
    from cluster.start import start_cluster

    stop = threading.Event()
    _stop_on_signals(stop)
    with _Display() as display:
        if config.admin.enabled:
            ensure_token(config.admin.token_file)
        display.say(f"checking {config.checkpoint}")
        model = _check_all(config.checkpoint, config.experts.ep_size).config
        display.say("starting Ray")
        layer_ids = tuple(spec.layer_id for spec in model.moe_layers)
        cluster = start_cluster(config, MapShape(len(layer_ids), model.num_experts, layer_ids))
        # Ray has put a handler of its own over SIGTERM, which would abort this process.
        _stop_on_signals(stop)
        try:
            is_ready = cluster.wait_ready(lambda status: display.say(progress_line(config, status)), stop)
            display.end()
            if is_ready:
                console.print(_ready_message(config, cluster.url), soft_wrap=True)
                stop.wait()
        finally:
            console.print(DRAINING, soft_wrap=True)
            cluster.close()
    console.print("stopped")


class _Display:
    """What is being done: a spinner on a terminal, otherwise a line whenever it changes. `end` before anything else
    is printed; a context, so that no failure leaves a spinner behind."""

    def __init__(self) -> None:
        self._spinner = console.status("")
        self._shown = ""

    def __enter__(self) -> Self:
        if console.is_terminal:
            self._spinner.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def say(self, text: str) -> None:
        if console.is_terminal:
            self._spinner.update(text)
        elif text != self._shown:
            console.print(text, soft_wrap=True)
        self._shown = text

    def end(self) -> None:
        self._spinner.stop()


def _stop_on_signals(stop: threading.Event) -> None:
    """The first SIGINT or SIGTERM sets `stop`; the second ends the process."""

    def handle(_signal: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            os._exit(EXIT_NOW)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)


def _ready_message(config: ClusterConfig, url: str) -> str:
    body = f'{{"model": "{config.served_name}", "messages": [{{"role": "user", "content": "Hello"}}], "stream": true}}'
    key = " -H 'authorization: Bearer KEY'" if config.gateway.api_keys_file else ""
    watch = f"watch: step35 experts   (admin port {config.admin.port})\n" if config.admin.enabled else ""
    return (
        f"ready: {config.served_name} at {url}/v1\n"
        f"{watch}"
        f"try:   curl -N {url}/v1/chat/completions{key} -H 'content-type: application/json' -d '{body}'"
    )


@contextmanager
def _failures_shown() -> Iterator[None]:
    """Named failures become their message and exit code 1; anything else is a bug and keeps its trace."""
    try:
        yield
    except (AdminUnreachable, CheckpointError, ConfigurationError, StartFailed) as error:
        errors.print(str(error), style="red", markup=False, soft_wrap=True)
        raise typer.Exit(EXIT_FAILED) from None


def _size(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes >= GIB else f"{num_bytes / 2**20:.1f} MiB"


if __name__ == "__main__":
    main()
