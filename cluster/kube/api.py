"""KubeApi: the few calls to Kubernetes that the coordinator makes, each with a deadline and a bound on its answer.

Connection, TLS and token are the `kubernetes` client's, on asyncio: whoever is cancelled leaves nothing behind, and no
thread hangs in a read. Its models are not used: of a Node of 30 kB a few words are kept.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp.http import HttpProcessingError
from kubernetes.aio import client, config

from cluster.kube.errors import AccessDenied, KubeUnavailable, WatchLost
from cluster.kube.settings import KubernetesConfig

PAGE_OBJECTS = 250
MAX_ANSWER_BYTES = 64 * 2**20  # a page of the largest nodes there can be stays below it
WATCH_SLACK_S = 5.0  # the server ends a watch; this much later we do
FORBIDDEN, GONE = 403, 410

# What a call may fail with: the network, an answer that is no HTTP or a line without end, a token that is not there.
BROKEN = (aiohttp.ClientError, HttpProcessingError, OSError, TimeoutError, config.ConfigException)


@dataclass(frozen=True)
class Resource:
    """One kind of object to follow. path: of its collection. selector: labels, "" for all."""

    name: str
    path: str
    selector: str = ""


NODES = Resource("nodes", "/api/v1/nodes")


def pods(namespace: str, ray_cluster: str) -> Resource:
    """The pods of one RayCluster."""
    return Resource("pods", f"/api/v1/namespaces/{namespace}/pods", f"ray.io/cluster={ray_cluster}")


def in_cluster() -> client.Configuration:
    """How a pod reaches its API; the token is read again when it changes. Raises KubeUnavailable outside of one."""
    configuration = client.Configuration()
    try:
        config.load_incluster_config(configuration)
    except config.ConfigException as error:
        raise KubeUnavailable(f"this is no pod with a service account: {error}") from error
    return configuration


class KubeApi:
    """Belongs to one event loop. Every method raises KubeError. Its owner closes it."""

    def __init__(self, configuration: client.Configuration, settings: KubernetesConfig) -> None:
        self._client = client.ApiClient(configuration)
        self._settings = settings

    async def list_page(self, resource: Resource, proceed: str = "") -> dict[str, Any]:
        """One page of a list. proceed: `metadata.continue` of the page before."""
        query = _selected(resource) | {"limit": PAGE_OBJECTS} | ({"continue": proceed} if proceed else {})
        return await self._call("GET", resource.path, query=query)

    async def watch(self, resource: Resource, version: str, on_event: Callable[[dict[str, Any]], None]) -> None:
        """Events after a version, until the server ends the watch. Raises KubeUnavailable when it breaks, and it can go
        on after the last event; WatchLost when it cannot."""
        query = _selected(resource) | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": round(self._settings.watch_s),
        }
        length_s = self._settings.watch_s + WATCH_SLACK_S
        try:
            async with asyncio.timeout(self._settings.call_timeout_s) as deadline:
                response = await self._open("GET", resource.path, length_s + self._settings.call_timeout_s, query)
                try:
                    await _check(response)
                    deadline.reschedule(asyncio.get_running_loop().time() + length_s)
                    while line := await response.content.readline():
                        on_event(_event(line))
                finally:
                    response.close()
        except HttpProcessingError as error:
            # Not to be had again from the same version: the same line would come.
            raise WatchLost(f"watching {resource.name}: {error}") from error
        except BROKEN as error:
            raise KubeUnavailable(f"watching {resource.name}: {type(error).__name__}: {error}") from error

    async def get(self, path: str) -> dict[str, Any]:
        """One object."""
        return await self._call("GET", path)

    async def create(self, path: str, body: Mapping[str, Any]) -> None:
        """A new object."""
        await self._call("POST", path, body=body)

    async def patch(self, path: str, body: Mapping[str, Any]) -> None:
        """Some fields of an object."""
        await self._call("PATCH", path, body=body)

    async def close(self) -> None:
        """Hang up. Idempotent."""
        await self._client.close()

    async def _call(
        self, method: str, path: str, *, query: Mapping[str, Any] | None = None, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        timeout_s = self._settings.call_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                response = await self._open(method, path, timeout_s, query, body)
                try:
                    await _check(response)
                    return _mapping(await _read(response))
                finally:
                    response.close()
        except BROKEN as error:
            raise KubeUnavailable(f"{method} {path}: {type(error).__name__}: {error}") from error

    async def _open(
        self,
        method: str,
        path: str,
        timeout_s: float,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> aiohttp.ClientResponse:
        """The answer, its body unread."""
        headers = {"Accept": "application/json"}
        if method == "PATCH":
            headers["Content-Type"] = "application/merge-patch+json"
        request = await self._client.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        answer = await self._client.call_api(*request, _request_timeout=aiohttp.ClientTimeout(total=timeout_s))
        response: aiohttp.ClientResponse = answer.response
        return response


def _selected(resource: Resource) -> dict[str, Any]:
    return {"labelSelector": resource.selector} if resource.selector else {}


async def _check(response: aiohttp.ClientResponse) -> None:
    """Raises what the status means; its body says nothing more that we use."""
    if response.status == FORBIDDEN:
        raise AccessDenied(f"{response.method} {response.url.path}: access is denied")
    if response.status == GONE:
        raise WatchLost(f"{response.method} {response.url.path}: the version is too old")
    if not response.ok:
        seconds = response.headers.get("Retry-After", "")
        message = f"{response.method} {response.url.path}: status {response.status}"
        raise KubeUnavailable(message, float(seconds) if seconds.isdecimal() else 0.0)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for part in response.content.iter_any():
        body += part
        if len(body) > MAX_ANSWER_BYTES:
            raise KubeUnavailable(f"{response.url.path}: an answer of more than {MAX_ANSWER_BYTES} bytes")
    return bytes(body)


def _event(line: bytes) -> dict[str, Any]:
    if not line.endswith(b"\n"):
        raise aiohttp.ClientPayloadError("the stream was cut")
    try:
        event = _mapping(line)
    except KubeUnavailable as error:
        raise WatchLost(str(error)) from error
    if event.get("type") == "ERROR":
        status = event.get("object")
        code = status.get("code") if isinstance(status, Mapping) else None
        raise WatchLost(f"the watch ended with status {code}")
    return event


def _mapping(text: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except ValueError as error:  # text that is no UTF-8 too
        raise KubeUnavailable(f"an answer that is no JSON: {text[:80]!r}") from error
    if not isinstance(fields, dict):
        raise KubeUnavailable(f"an answer that is no object: {text[:80]!r}")
    return fields
