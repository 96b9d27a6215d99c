"""Brings one cluster up on Ray, reports how far it is, and takes it down in order. Used by the command line and tests.

Knows nothing of terminals. The Ray processes it started end with it; on an existing Ray cluster it touches nothing but
its own two applications.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import io
import logging
import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import ProxyLocation
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, LoggingConfig

from cluster.config import ClusterConfig, export_environment
from cluster.deploy import (
    COORDINATOR,
    SERVE_NAMESPACE,
    Builders,
    MapShape,
    build_engine,
    build_gateway,
    gateway_app_name,
)
from cluster.errors import StartFailed
from cluster.membership import ClusterStatus
from cluster.resources import process_environment, tier_timeout_s

logger = logging.getLogger(__name__)

LOOK_PERIOD_S = 0.5
CALL_TIMEOUT_S = 5.0
SERVE_CONTROLLER = "SERVE_CONTROLLER_ACTOR"


class RunningCluster:
    """Two deployed applications: gateway and engine. `wait_ready` once, `close` at the end."""

    def __init__(self, config: ClusterConfig, port: socket.socket | None = None) -> None:
        """port: what reserves the gateway's port, for `close` to give it back."""
        self._config = config
        self._port = port
        self._is_closed = False
        # Callers first: gateway requests end while the engine still runs.
        self._app_names = (gateway_app_name(config), config.ray.app_name)

    @property
    def url(self) -> str:
        """Where this machine reaches the API."""
        host = self._config.gateway.host
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
        return f"http://{shown}:{self._config.gateway.port}"

    def wait_ready(self, on_progress: Callable[[ClusterStatus], None], stop: threading.Event) -> bool:
        """True once a token can be produced over HTTP, False if `stop` was set before.

        Raises StartFailed when a deployment has failed for good or the time is over.
        """
        deadline = time.monotonic() + self._config.control.start_timeout_s
        while not self.is_ready():
            status = self.status()
            if status is not None:
                on_progress(status)
            self._raise_if_failed()
            if time.monotonic() > deadline:
                raise StartFailed(f"not ready within {self._config.control.start_timeout_s:g} s", self._problems())
            if stop.wait(LOOK_PERIOD_S):
                return False
        return True

    def is_ready(self) -> bool:
        """Whether GET /ready says so."""
        try:
            with urllib.request.urlopen(f"{self.url}/ready", timeout=CALL_TIMEOUT_S) as response:
                return bool(response.status == 200)
        except (OSError, http.client.HTTPException):
            return False

    def status(self) -> ClusterStatus | None:
        """What the coordinator knows, None while it cannot be reached."""
        try:
            handle: DeploymentHandle[Any] = serve.get_deployment_handle(COORDINATOR, self._config.ray.app_name)
            status: ClusterStatus = handle.status.remote().result(timeout_s=CALL_TIMEOUT_S)
        except (RayError, RayServeException, TimeoutError, KeyError):
            # KeyError: Serve has not registered the deployment yet.
            return None
        return status

    def close(self) -> None:
        """Let running requests end, then stop gateway, attention, experts, coordinator, in this order. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            # Ray reports the end of Serve's own controller as a failure, from a thread, on stdout.
            with contextlib.redirect_stdout(io.StringIO()):
                # Asking Serve for anything would start a Ray of its own.
                if ray.is_initialized():
                    self._stop_applications()
                ray.shutdown()
        finally:
            if self._port is not None:
                self._port.close()

    def _stop_applications(self) -> None:
        gateway, engine = self._app_names
        self._delete(gateway)
        if self._config.ray.address is not None:
            self._delete(engine)
            return
        serve.shutdown()
        self._wait_until(self._is_controller_gone)

    def _delete(self, name: str) -> None:
        """`serve.delete` by itself would wait 60 s, however long the drain may be."""
        with contextlib.suppress(RayError, RayServeException, TimeoutError):
            serve.delete(name, _blocking=False)
            self._wait_until(lambda: name not in serve.status().applications)

    def _wait_until(self, is_met: Callable[[], bool]) -> None:
        """Also ends when a tier has had all its time."""
        deadline = time.monotonic() + tier_timeout_s(self._config)
        waiting = threading.Event()
        while not is_met() and time.monotonic() < deadline:
            waiting.wait(LOOK_PERIOD_S)

    @staticmethod
    def _is_controller_gone() -> bool:
        """`serve.shutdown` gives up after 30 s of its own; the drain may be longer."""
        try:
            ray.get_actor(SERVE_CONTROLLER, SERVE_NAMESPACE)
        except ValueError:
            return True
        return False

    def _raise_if_failed(self) -> None:
        if any(application.status is ApplicationStatus.DEPLOY_FAILED for application in self._applications()):
            raise StartFailed("the cluster did not start", self._problems())

    def _problems(self) -> list[str]:
        return [
            f"{name}: {deployment.status.value}: {deployment.message}".rstrip(": ")
            for application in self._applications()
            for name, deployment in application.deployments.items()
            if deployment.status.value != "HEALTHY"
        ]

    def _applications(self) -> list[ApplicationStatusOverview]:
        """Ours, as far as Serve answers now."""
        try:
            known = serve.status().applications
        except (RayError, RayServeException, TimeoutError) as error:
            logger.info("Serve does not tell its status: %s", type(error).__name__)
            return []
        return [known[name] for name in self._app_names if name in known]


def start_cluster(config: ClusterConfig, shape: MapShape, builders: Builders | None = None) -> RunningCluster:
    """Start or join Ray, start Serve and deploy. Returns before the actors have loaded. Raises StartFailed."""
    port = reserve_port(config.gateway.host, config.gateway.port) if config.ray.address is None else None
    export_environment(process_environment(config))
    cluster = RunningCluster(config, port)
    try:
        _start_ray(config)
        _start_serve(config)
        # In this order, because the gateway looks for the engine's deployments when it starts.
        _deploy(serve.RunTarget(build_engine(config, shape, builders), name=config.ray.app_name, route_prefix=None))
        _deploy(serve.RunTarget(build_gateway(config), name=gateway_app_name(config)))
    except (RayError, RayServeException, RuntimeError, ConnectionError, TimeoutError) as error:
        cluster.close()
        raise StartFailed("Ray did not start", [f"{type(error).__name__}: {error}"]) from error
    return cluster


def reserve_port(host: str, port: int) -> socket.socket:
    """Make sure that nobody else listens at this address, or will until the socket returned is closed.

    Ray's proxy shares its port with anyone who asks: two clusters would answer each other's requests. Our own proxy
    may still bind; a server that does not share, and a second call of this, may not. Raises StartFailed.
    """
    # As Ray's proxy chooses it.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    held = socket.socket(family)
    try:
        with socket.socket(family) as probe:
            # Connections that an earlier run has closed are no obstacle; a listener is.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((host, port))
    except OSError as error:
        held.close()
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be listened on: {error.strerror or error}"
        raise StartFailed(f"port {port} of {host} {reason}") from error
    return held


def _deploy(target: serve.RunTarget) -> None:
    """Hand an application to Serve; returns when its deployments are known, long before they run."""
    serve.run_many([target], wait_for_applications_running=False)


def _start_ray(config: ClusterConfig) -> None:
    settings: dict[str, Any] = {"namespace": config.ray.namespace, "log_to_driver": False, "logging_level": "error"}
    if config.ray.address is not None:
        ray.init(address=config.ray.address, **settings)
        return
    ray.init(
        address="local",
        num_cpus=config.ray.num_cpus,
        object_store_memory=config.ray.object_store_bytes,
        include_dashboard=False,
        **settings,
    )


def _start_serve(config: ClusterConfig) -> None:
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(
        proxy_location=ProxyLocation.EveryNode,
        http_options={
            "host": config.gateway.host,
            "port": config.gateway.port,
            # The API has deadlines of its own; Serve's would cut a stream without a word.
            "request_timeout_s": None,
        },
        logging_config=LoggingConfig(log_level=config.log_level.upper(), enable_access_log=False),
    )
