"""The command line: `step35 serve` runs a cluster until a signal, `step35 check` looks at a checkpoint, `step35 top`
watches a running cluster, and `step35 experts` steers its expert tier.

Flags name a configuration file or a role's size, never a setting: settings live in `cluster.config`.
"""

from __future__ import annotations

import os
import shlex
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Self

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from actors.errors import CheckpointError
from actors.weights.check import CheckpointSummary, check_checkpoint
from cluster.admin.commands import app as experts
from cluster.admin.token import check_token, ensure_token
from cluster.admin.top import HELP as TOP_HELP
from cluster.admin.top import top
from cluster.api.served_model import load_served_model
from cluster.config import ClusterConfig, load_config
from cluster.errors import AdminUnreachable, ConfigurationError, OrderRefused, PortUnavailable, StartFailed

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

HELP = """Serve Step-3.5-Flash on Ray, with attention and experts as separate deployments.

step35 --install-completion makes the Tab key complete commands and options in new shells.
"""
EPILOG = "Exit codes: 0 done, 1 something is wrong and the message says what, 2 the command line is."
DRAINING = "draining: running requests end, then the cluster stops (Ctrl-C again exits at once)"
FAILURES = (AdminUnreachable, CheckpointError, ConfigurationError, OrderRefused, PortUnavailable, StartFailed)
EXIT_FAILED = 1
EXIT_NOW = 130
GIB = 2**30

Checkpoint = Annotated[Path | None, typer.Argument(help="Checkpoint folder; overrides the configuration's.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file; see cluster/config.py for its fields.")]
LogLevel = Annotated[str | None, typer.Option("--log-level", help="debug, info, warning or error.")]
Folder = Annotated[Path, typer.Argument(help="Checkpoint folder: config.json, safetensors, tokenizer.")]
EpSize = Annotated[int, typer.Option("--ep-size", help="Number of expert ranks the experts are divided over.")]


class _Group(TyperGroup):
    """Named failures of any command become their message and exit code 1; anything else is a bug, keeps its trace."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FAILURES as error:
            errors.print(str(error), style="red", markup=False, soft_wrap=True)
            raise typer.Exit(EXIT_FAILED) from None


app = typer.Typer(cls=_Group, help=HELP, epilog=EPILOG, no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(experts, name="experts")
app.command(help=TOP_HELP)(top)


@app.command()
def serve(checkpoint: Checkpoint = None, config: ConfigFile = None, log_level: LogLevel = None) -> None:
    """Start a cluster and serve the OpenAI API until Ctrl-C or SIGTERM, then drain and exit 0.

    Without a configuration everything runs on this machine: one attention actor, eight expert actors, a gateway on
    127.0.0.1:8000. Every field can also be set by a variable, such as STEP35__ATTENTION__NUM_REPLICAS=2.
    A second Ctrl-C exits at once.
    """
    settings = load_config(config, overrides={"checkpoint": checkpoint, "log_level": log_level})
    _serve(settings, config)


@app.command()
def check(checkpoint: Folder, ep_size: EpSize = 8) -> None:
    """Check a checkpoint without loading it, and show what each rank would hold. Exit code 1 lists what is wrong."""
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


def main() -> None:
    """Entry point of the `step35` command."""
    app()


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


def _serve(config: ClusterConfig, file: Path | None) -> None:
    # Imported late: Ray takes seconds, and a wrong flag should be told at once.
    from cluster.deploy import MapShape
    from cluster.progress import progress_line
    from cluster.start import start_cluster

    stop = threading.Event()
    _stop_on_signals(stop)
    with _Display() as display:
        display.say(f"checking {config.checkpoint}")
        model = _check_all(config.checkpoint, config.experts.ep_size).config
        if config.admin.enabled:
            _prepare_admin(config)
        display.say("starting Ray")
        layer_ids = tuple(spec.layer_id for spec in model.moe_layers)
        cluster = start_cluster(config, MapShape(len(layer_ids), model.num_experts, layer_ids))
        # Ray has put a handler of its own over SIGTERM, which would abort this process.
        _stop_on_signals(stop)
        try:
            is_ready = cluster.wait_ready(lambda status: display.say(progress_line(config, status)), stop)
            display.end()
            if is_ready:
                console.print(_ready_message(config, cluster.url, file), soft_wrap=True)
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


def _prepare_admin(config: ClusterConfig) -> None:
    """Token and port of the admin route, as far as this machine can tell. Raises ConfigurationError or
    PortUnavailable, which the coordinator could only say in its log."""
    from cluster.admin.server import listen

    admin = config.admin
    if config.ray.address is not None:
        # The coordinator may run elsewhere: a token made here would not be the one it reads.
        check_token(admin.token_file)
    else:
        ensure_token(admin.token_file)
        listen(admin.host, admin.port).close()


def _ready_message(config: ClusterConfig, url: str, file: Path | None) -> str:
    body = f'{{"model": "{config.served_name}", "messages": [{{"role": "user", "content": "Hello"}}], "stream": true}}'
    key = " -H 'authorization: Bearer KEY'" if config.gateway.api_keys_file else ""
    return (
        f"ready: {config.served_name} at {url}/v1\n"
        f"{_admin_message(config, file)}"
        f"try:   curl -N {url}/v1/chat/completions{key} -H 'content-type: application/json' -d '{body}'"
    )


def _admin_message(config: ClusterConfig, file: Path | None) -> str:
    if not config.admin.enabled:
        return ""
    option = f" --config {shlex.quote(str(file))}" if file is not None else ""
    place = "" if config.ray.address is None else ", on the coordinator's machine"
    return (
        f"watch: {config.admin.url}{place}   (token: {config.admin.token_file})\n"
        f"       step35 top{option}   and   step35 experts{option}\n"
    )


def _size(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes >= GIB else f"{num_bytes / 2**20:.1f} MiB"


if __name__ == "__main__":
    main()
