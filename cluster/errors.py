"""Named failures of the cluster package.

ClusterError
├── ConfigurationError         a configuration file or variable that is wrong; the message names field, value and rule
├── CoordinatorUnavailable     the coordinator did not answer in time; what it last published stays good
├── MembershipLost             the coordinator gave this process up, or another one has its place: it must restart
├── PortUnavailable            somebody else listens where this process should
├── AdminUnreachable           no admin route answered; the message says what to look at
├── OrderRefused               the admin route answered and did not do what was asked; the message is its sentence
├── StartFailed                the cluster did not come up; `problems` says why
└── ApiError               an HTTP request that gets an error body; its message is a sentence of ours
    ├── InvalidRequest         the body, a field or a combination of fields is wrong
    │   └── ContextLengthExceeded  prompt and completion do not fit the context
    ├── InvalidOrder           an operator's order that cannot be followed now
    ├── Unauthorized           no key, or one that is not known
    ├── ForeignRequest         for a host, or from a page, that is not the operator's
    ├── UnknownModel           the model is not served here
    ├── BodyTooLarge           the body is longer than allowed
    ├── BodyTooSlow            the body did not arrive in time
    ├── TooManyRequests        this gateway has no free place
    ├── NotReady               no token can be produced yet
    ├── GenerationFailed       the engine reported a failure; `kind` says which
    └── ClientGone             nobody is left to answer
"""

from __future__ import annotations

from collections.abc import Sequence

from actors.messages import ErrorKind


class ClusterError(Exception):
    """Base of every failure that the cluster package reports."""


class ConfigurationError(ClusterError):
    """The configuration is wrong. The message lists every problem with its field, value and rule."""


class CoordinatorUnavailable(ClusterError):
    """The coordinator did not answer in time. The last view stays good; ask again later."""


class MembershipLost(ClusterError):
    """This process is no longer the member it was and cannot become it again."""


class PortUnavailable(ClusterError):
    """A port cannot be listened on. The message names it, and the field that sets it."""


class AdminUnreachable(ClusterError):
    """Nobody answered as an admin route does. The message is for the operator."""


class OrderRefused(ClusterError):
    """The admin route does not do what was asked. The message is for the operator."""


class StartFailed(ClusterError):
    """The cluster did not come up. `problems`: what is known of the causes, one sentence or trace each."""

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__("\n".join([message, *problems]))
        self.problems = tuple(problems)


class ApiError(ClusterError):
    """A failure that a client is told of. `message` is shown as it is; `param` names the field to blame, if any."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(ApiError):
    """The request can never work as it is."""


class ContextLengthExceeded(InvalidRequest):
    """Prompt and completion together are longer than the context."""


class InvalidOrder(ApiError):
    """An operator's order cannot be followed; the message says what to do."""


class Unauthorized(ApiError):
    """The request carries no key that is known."""


class ForeignRequest(ApiError):
    """A browser may have been made to send the request: its host or the page it comes from is not the operator's."""


class UnknownModel(ApiError):
    """The named model is not served here."""


class BodyTooLarge(ApiError):
    """The body is longer than this gateway reads."""


class BodyTooSlow(ApiError):
    """The body did not arrive before its deadline."""


class TooManyRequests(ApiError):
    """As many requests as allowed are being answered."""


class NotReady(ApiError):
    """The cluster cannot produce a token yet."""


class GenerationFailed(ApiError):
    """The engine ended a sequence with an error of this `kind`."""

    def __init__(self, kind: ErrorKind, message: str, param: str | None = None) -> None:
        super().__init__(message, param)
        self.kind = kind


class ClientGone(ApiError):
    """The client closed its connection before the answer was complete."""
