"""The errors that quatrefoil raises, each a sentence for the person who made the call."""

from __future__ import annotations


class QuatrefoilError(Exception):
    """Base of every error that quatrefoil raises on purpose."""


class OperatorError(QuatrefoilError, ValueError):
    """A call that an operator's semantics forbid.

    The message names the operator, the argument or attribute, what was given and what would do.
    """

    def __init__(self, op: str, argument: str, given: object, wanted: str) -> None:
        self.op = op
        self.argument = argument
        self.given = given
        self.wanted = wanted
        super().__init__(f"{op}: {argument} is {given}; {wanted}")


class BackendUnavailable(QuatrefoilError, RuntimeError):
    """The backend that was asked for cannot run on this machine; the message says what would add it."""


class NoKernelError(QuatrefoilError, NotImplementedError):
    """No kernel of the backend accepts the problem; the message lists every kernel's reason."""
