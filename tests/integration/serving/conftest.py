"""Fixtures of the tests that hold one conversation on two base classes."""

from tests.support.assertions.conversation import both, use_layers

__all__ = ["both", "use_layers"]
