"""Finds the deployments of another Serve application, which may still be built: patiently, and with an end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from cluster.errors import StartFailed

logger = logging.getLogger(__name__)

Handle: TypeAlias = DeploymentHandle[Any]

FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 2.0


async def find_deployments(
    names: Sequence[str],
    app_name: str,
    timeout_s: float,
    look: Callable[[str, str], Handle] = serve.get_deployment_handle,
) -> list[Handle]:
    """Handles in the order of their names, as soon as Serve knows them all. Serve builds applications side by side, and
    the one that asks may be ready first. look: slow, runs on a thread. Raises StartFailed that names what is missing.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    found: dict[str, Handle] = {}
    backoff_s = FIRST_BACKOFF_S
    while True:
        reasons = {name: await _look(look, name, app_name, deadline, found) for name in names if name not in found}
        missing = [name for name in names if name not in found]
        if not missing:
            return [found[name] for name in names]
        if asyncio.get_running_loop().time() + backoff_s > deadline:
            problems = [f"{name} of application {app_name}: {reasons[name]}" for name in missing]
            raise StartFailed(f"Serve has no {', '.join(missing)} after {timeout_s:g} s", problems)
        logger.info("waiting for %s of application %s", ", ".join(missing), app_name)
        await asyncio.sleep(backoff_s)
        backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)


async def _look(
    look: Callable[[str, str], Handle], name: str, app_name: str, deadline: float, found: dict[str, Handle]
) -> str:
    """Adds to `found`, or says why not."""
    try:
        async with asyncio.timeout_at(deadline):
            found[name] = await asyncio.to_thread(look, name, app_name)
    except KeyError:
        return "not deployed; look at the status of that application first"
    except (RayError, RayServeException, TimeoutError) as error:
        return f"Serve's controller does not answer ({type(error).__name__})"
    return ""
