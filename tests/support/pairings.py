"""Layer, server and database of a test: one or two pairings in `make test`, all four in `make test-all`.

Rounds are scaled down in `make test`, and run at the default settings as well in `make test-all`.
"""

from dataclasses import dataclass

import pytest


@dataclass(frozen=True, slots=True)
class Pairing:
    layer: str  # pubsub or core
    server: str  # daphne or uvicorn
    database: str  # sqlite or postgres

    def __str__(self) -> str:
        return f"{self.layer}-{self.server}-{self.database}"


# Four of the eight; in them, every two values meet once.
PAIRINGS = (
    Pairing("pubsub", "daphne", "sqlite"),
    Pairing("core", "daphne", "postgres"),
    Pairing("pubsub", "uvicorn", "postgres"),
    Pairing("core", "uvicorn", "sqlite"),
)


def pairings(*everyday: str, **only: str) -> list[object]:
    """Return parameters for a test.

    Args:
        everyday: The pairings that always run. The others have the mark `matrix`.
        only: Values that a pairing must have, such as `server="daphne"`; other pairings are left out.
    """
    chosen = [each for each in PAIRINGS if all(getattr(each, name) == value for name, value in only.items())]
    assert set(everyday) <= set(map(str, chosen)), everyday
    return [
        pytest.param(each, id=str(each), marks=() if str(each) in everyday else pytest.mark.matrix)
        for each in chosen
    ]


DEFAULT_INTERVAL = 10.0


def scale(interval: float) -> str:
    """Return the name of a ROUND_INTERVAL in `rounds`."""
    return "default" if interval == DEFAULT_INTERVAL else "scaled"


#: For tests with the argument `interval`: ROUND_INTERVAL, which is twice ROUND_TIMEOUT in all of them.
rounds = pytest.mark.parametrize(
    "interval", [2.0, pytest.param(DEFAULT_INTERVAL, marks=pytest.mark.matrix)], ids=scale
)
