"""Named failures of calls to Kubernetes.

KubeError
├── AccessDenied      the service account may not do this; asking again soon would not help
├── WatchLost    the version to go on from is forgotten: everything must be listed anew
└── KubeUnavailable   anything else that kept an answer from coming or from being understood
"""

from __future__ import annotations


class KubeError(Exception):
    """Base of all of them. The message is for the log."""


class AccessDenied(KubeError):
    """The service account may not do this."""


class WatchLost(KubeError):
    """The version to go on from is forgotten, or what came after it was garbled."""


class KubeUnavailable(KubeError):
    """No answer, or none that can be understood. retry_after_s: what the server asks for."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
