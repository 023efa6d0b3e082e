"""The metrics that a server shows at /metrics."""

import urllib.request

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.support.programs.servers import WebServer


class Scrape:
    """The samples of one request; the name of a counter ends in `_total`."""

    def __init__(self, families: list[Metric]) -> None:
        self._samples = [sample for family in families for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """Return the sum over all samples of this name with these labels; 0 if there is none yet."""
        return sum(
            sample.value
            for sample in self._samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def by(self, label: str, name: str) -> dict[str, float]:
        """Return the samples of this name that are above zero, by the value of one label."""
        found = {sample.labels[label]: sample.value for sample in self._samples if sample.name == name}
        return {value: number for value, number in found.items() if number}


def scrape(server: WebServer) -> Scrape:
    """Ask the server now. This blocks; if clients of the test must go on, use `asyncio.to_thread`."""
    with urllib.request.urlopen(server.http("/metrics"), timeout=10) as answer:  # noqa: S310 - our own server
        return Scrape(list(text_string_to_metric_families(answer.read().decode())))
