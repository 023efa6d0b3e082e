"""Layer, server and database of a test: one or two pairings in `make test`, all four in `make test-all`.

And rounds: scaled down in `make test`, and at the default settings, too, in `make test-all`.
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


# Four of the eight in which every two values meet once.
PAIRINGS = (
    Pairing("pubsub", "daphne", "sqlite"),
    Pairing("core", "daphne", "postgres"),
    Pairing("pubsub", "uvicorn", "postgres"),
    Pairing("core", "uvicorn", "sqlite"),
)


def pairings(*everyday: str, **only: str) -> list[object]:
    """Parameters for a test: the `everyday` pairings run always, the others carry the mark `matrix`.

    `only` leaves out what does not have these values, as `server="daphne"`.
    """
    chosen = [each for each in PAIRINGS if all(getattr(each, name) == value for name, value in only.items())]
    assert set(everyday) <= set(map(str, chosen)), everyday
    return [
        pytest.param(each, id=str(each), marks=() if str(each) in everyday else pytest.mark.matrix)
        for each in chosen
    ]


DEFAULT_INTERVAL = 10.0


def scale(interval: float) -> str:
    """What `rounds` calls a ROUND_INTERVAL."""
    return "default" if interval == DEFAULT_INTERVAL else "scaled"


#: For tests with the argument `interval`: ROUND_INTERVAL, which is twice ROUND_TIMEOUT in all of them.
rounds = pytest.mark.parametrize(
    "interval", [2.0, pytest.param(DEFAULT_INTERVAL, marks=pytest.mark.matrix)], ids=scale
)
