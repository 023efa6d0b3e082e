"""A Celery application with a task that publishes; Redis is its broker and keeps its results."""

import os

import django
from celery import Celery

from realtime import publish

django.setup()

app = Celery("green", broker=os.environ["REDIS_URL"], backend=os.environ["REDIS_URL"])
app.conf.broker_connection_retry_on_startup = True


@app.task(name="publish_number")  # type: ignore[untyped-decorator]
def publish_number(group: str, number: int) -> int:
    publish(group, number)
    return os.getpid()


if __name__ == "__main__":
    # Do as a web process: send tasks, and wait for their results.
    sent = [publish_number.delay("g", number) for number in range(30)]
    for result in sent:
        print(result.get(timeout=30))  # noqa: T201 - what the test reads
