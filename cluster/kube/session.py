"""One session with Kubernetes: followers of nodes and pods, what they mean for members, and the Events. Imports the
client, so it is imported only where there is a cluster to talk to."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from cluster.config import PodEnvironment
from cluster.kube.api import NODES, KubeApi, in_cluster, pods
from cluster.kube.errors import KubeError
from cluster.kube.events import EventPoster, Subject
from cluster.kube.follower import Follower
from cluster.kube.queue import NoticeQueue
from cluster.kube.settings import KubernetesConfig
from cluster.kube.states import NodeState, PodState, node_state, pod_state, surroundings
from cluster.surroundings import Surroundings

logger = logging.getLogger(__name__)

SETTLE_S = 0.05  # changes that come together are told together

OnSurroundings = Callable[[Surroundings], Awaitable[None]]


class KubeSession:
    """`run` until cancelled. Owns its connection."""

    def __init__(
        self,
        settings: KubernetesConfig,
        pod: PodEnvironment,
        queue: NoticeQueue,
        on_surroundings: OnSurroundings,
        *,
        connect: Callable[[KubernetesConfig], KubeApi] | None = None,
    ) -> None:
        """connect: makes the connection, by default to the cluster that this pod is in."""
        self._settings = settings
        self._pod = pod
        self._queue = queue
        self._on_surroundings = on_surroundings
        self._connect = connect or (lambda config: KubeApi(in_cluster(), config))
        self._changed = asyncio.Event()
        self._nodes: Follower[NodeState] = Follower(NODES, node_state, settings, self._changed.set)
        own = pods(pod.namespace, pod.ray_cluster)
        self._pods: Follower[PodState] = Follower(own, pod_state, settings, self._changed.set)

    async def run(self) -> None:
        """Raises KubeUnavailable if there is no cluster to connect to."""
        api = self._connect(self._settings)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._publish(), name="kubernetes-surroundings")
                if self._settings.nodes:
                    tasks.create_task(self._nodes.run(api), name="kubernetes-nodes")
                if self._pod.namespace and self._pod.ray_cluster:
                    tasks.create_task(self._pods.run(api), name="kubernetes-pods")
                else:
                    logger.warning("pods are not followed: the environment names no namespace and RayCluster")
                if self._settings.events and self._pod.namespace:
                    tasks.create_task(self._post_events(api), name="kubernetes-events")
        finally:
            await api.close()

    async def _publish(self) -> None:
        told = Surroundings()
        while True:
            await self._changed.wait()
            await asyncio.sleep(SETTLE_S)
            self._changed.clear()
            known = surroundings(
                self._nodes.states.values(),
                self._pods.states.values(),
                self._settings,
                has_all_nodes=self._nodes.is_synced,
            )
            if known != told:
                told = known
                await self._on_surroundings(known)

    async def _post_events(self, api: KubeApi) -> None:
        subject = await _with_uid(api, _subject(self._pod))
        await EventPoster(self._queue, subject, self._settings, clock=time.time).run(api)


def _subject(pod: PodEnvironment) -> Subject:
    kind, name = ("RayService", pod.ray_service) if pod.ray_service else ("RayCluster", pod.ray_cluster)
    return Subject(kind, name, pod.namespace, reporter=pod.pod or "coordinator")


async def _with_uid(api: KubeApi, subject: Subject) -> Subject:
    """`kubectl describe` finds Events by it. Only the RayService may be read."""
    if subject.kind != "RayService":
        return subject
    try:
        found = await api.get(f"/apis/ray.io/v1/namespaces/{subject.namespace}/rayservices/{subject.name}")
    except KubeError as error:
        logger.info("Events name the RayService without its uid: %s", error)
        return subject
    metadata = found.get("metadata")
    return replace(subject, uid=str(metadata.get("uid") or "") if isinstance(metadata, dict) else "")
