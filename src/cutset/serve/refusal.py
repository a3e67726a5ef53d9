"""Why a request gets no answer: an HTTP status and a sentence."""

from __future__ import annotations

from cutset.errors import CutsetError


class Refusal(CutsetError):
    """A request that is not answered; becomes ``{"error": MESSAGE}`` with its status.

    Attributes:
        status: the HTTP status, 400 to 599.
        reason: one word for metrics: ``"invalid"``, ``"overload"``, ``"deadline"``, ``"size"``,
            ``"draining"``, ``"auth"``, ``"failed"``, ``"unknown"``.
        retry_after_s: when it is worth trying again, for the header ``Retry-After``; or None.
    """

    def __init__(
        self, message: str, *, status: int, reason: str, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s


def invalid(field: str, problem: str) -> Refusal:
    """The refusal (400) of a request of which `field` is wrong."""
    return Refusal(f"{field}: {problem}", status=400, reason="invalid")
