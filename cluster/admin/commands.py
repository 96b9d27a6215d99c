"""`step35 experts`: what an operator asks of, and orders from, a running cluster's expert tier.

Each command is one call of the admin route and what is printed of its answer. Knows nothing of how failures are shown.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from cluster.admin.client import AdminClient
from cluster.admin.paths import BALANCER, EXPERTS, PIN, REBALANCE
from cluster.admin.token import read_token
from cluster.config import load_admin
from cluster.errors import AdminUnreachable, ConfigurationError
from cluster.experts_status import ExpertStatus, ExpertTierStatus, Proposal
from cluster.experts_table import expert_line, experts_view, proposal_text

# Each paragraph in one line: typer keeps line breaks.
HELP = (
    "Show and steer how a running cluster's experts are placed.\n\n"
    "Without a command: what is wrong if something is, what the balancer does and decided last, the load of every "
    "expert rank, how sure the routing is, the hottest experts and where their copies are, and the last rebalances.\n\n"
    "Speaks to the admin route (section admin of the configuration) with the token of admin.token_file. Give the "
    "--config that the cluster was started with, unless its admin section is the default one.\n\n"
    "To keep an eye on it: watch -n 2 step35 experts"
)

app = typer.Typer(help=HELP, invoke_without_command=True)
console = Console(highlight=False)

Read = TypeVar("Read")

ConfigFile = Annotated[Path | None, typer.Option("--config", help="The file that the cluster was started with.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the whole answer as JSON, for scripts.")]
ShowAll = Annotated[bool, typer.Option("--all", help="Every layer, not only those that most need a look.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be moved, and what it would gain.")]
Layer = Annotated[int, typer.Argument(help="Number of the layer, as the table shows it.", min=0)]
Expert = Annotated[int, typer.Argument(help="Number of the logical expert in its layer.", min=0)]
Ranks = Annotated[
    str | None, typer.Option("--ranks", help="EP ranks that get one copy each, as 0,3. Without: where they are now.")
]


@dataclass(frozen=True)
class _Options:
    """What the commands share. Each is known before and after a command's name."""

    config: Path | None
    as_json: bool


@app.callback()
def show(context: typer.Context, config: ConfigFile = None, as_json: AsJson = False, show_all: ShowAll = False) -> None:
    context.obj = _Options(config, as_json)
    if context.invoked_subcommand is None:
        status = _call(context.obj, "GET", EXPERTS, read=ExpertTierStatus.from_dict)
        if status is not None:
            console.print(experts_view(status, show_all=show_all))


@app.command()
def rebalance(
    context: typer.Context, dry_run: DryRun = False, config: ConfigFile = None, as_json: AsJson = False
) -> None:
    """Move and copy experts to where the load asks for them, now, however little is gained.

    Serving goes on meanwhile. --dry-run shows moves and predicted gain and changes nothing.
    """
    options = _merged(context, config, as_json=as_json)
    proposal = _call(options, "POST", REBALANCE, {"dry_run": dry_run}, read=lambda fields: Proposal(**fields))
    if proposal is not None:
        _say(proposal_text(proposal))


@app.command()
def pin(
    context: typer.Context,
    layer: Layer,
    expert: Expert,
    ranks: Ranks = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Keep an expert's copies where they are, or on the --ranks given.

    The next rebalance brings them there; `step35 experts rebalance` begins one now.
    """
    body = {"ep_ranks": None if ranks is None else _ranks(ranks)}
    options = _merged(context, config, as_json=as_json)
    status = _call(options, "PUT", PIN.format(layer_id=layer, logical_id=expert), body, read=_expert)
    if status is not None:
        _say(expert_line(status))


@app.command()
def unpin(
    context: typer.Context, layer: Layer, expert: Expert, config: ConfigFile = None, as_json: AsJson = False
) -> None:
    """Leave an expert's copies to the balancer again."""
    options = _merged(context, config, as_json=as_json)
    status = _call(options, "DELETE", PIN.format(layer_id=layer, logical_id=expert), read=_expert)
    if status is not None:
        _say(expert_line(status))


@app.command()
def pause(context: typer.Context, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Let no rebalance begin by itself. One that is under way is finished; orders are still taken."""
    options = _merged(context, config, as_json=as_json)
    if _call(options, "PUT", BALANCER, {"paused": True}, read=_mode) is not None:
        _say("the balancer is paused; step35 experts resume lets it go on")


@app.command()
def resume(context: typer.Context, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Let the balancer begin rebalances again, as its mode says."""
    options = _merged(context, config, as_json=as_json)
    mode = _call(options, "PUT", BALANCER, {"paused": False}, read=_mode)
    if mode is not None:
        _say(f"the balancer is not paused; its mode is {mode}")


def _merged(context: typer.Context, config: Path | None, *, as_json: bool) -> _Options:
    before: _Options = context.obj
    return _Options(config or before.config, as_json or before.as_json)


def _call(
    options: _Options, method: str, path: str, body: object = None, *, read: Callable[[Any], Read]
) -> Read | None:
    """The answer as `read` makes it, or None when it has been printed as JSON. Raises ConfigurationError,
    AdminUnreachable or OrderRefused."""
    fields = _client(options.config).call(method, path, body)
    if options.as_json:
        typer.echo(json.dumps(fields, indent=1))
        return None
    try:
        return read(fields)
    except (KeyError, TypeError, ValueError) as error:
        raise AdminUnreachable(
            "the cluster's answer is of another version than this program; --json prints it as it is"
        ) from error


def _client(config: Path | None) -> AdminClient:
    admin = load_admin(config)
    if not admin.enabled:
        raise ConfigurationError("admin.enabled is false: this cluster has no admin route")
    return AdminClient(admin.url, read_token(admin.token_file))


def _ranks(text: str) -> list[int]:
    """Raises BadParameter."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise typer.BadParameter(f"EP ranks with commas between them, as 0,3; got {text!r}", param_hint="--ranks")
    return [int(part) for part in parts]


def _expert(fields: Any) -> ExpertStatus:
    return ExpertStatus(**{**fields, "ep_ranks": tuple(fields["ep_ranks"])})


def _mode(fields: Any) -> str:
    return str(fields["mode"])


def _say(text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)
