"""The migration to presence, on tables with connections that are open."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from django.apps.registry import Apps
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.utils.timezone import now

from realtime.migrations import LABEL
from realtime.models import Connection, Membership, PresentUser, Process
from realtime.presence import presence

BEFORE, PRESENCE = "0004_time_to_look", "0005_presence"


def migrate(name: str) -> Apps:
    executor = MigrationExecutor(connection)
    executor.migrate([(LABEL, name)])
    apps: Apps = executor.loader.project_state([(LABEL, name)]).apps
    return apps


@pytest.fixture
def before(transactional_db: None) -> Iterator[Apps]:
    """The models of the version before, on its tables."""
    (latest,) = MigrationExecutor(connection).loader.graph.leaf_nodes(LABEL)
    try:
        yield migrate(BEFORE)
    finally:
        migrate(latest[1])


def test_open_memberships_get_their_users(before: Apps) -> None:
    process, member, guest, gone = (uuid.uuid4() for _ in range(4))

    def get(name: str) -> Any:
        return before.get_model(LABEL, name).objects

    get("Process").create(id=process, channel_name="a", host="h", pid=1, started_at=now(), answered_at=now())
    for id_, user in ((member, "7"), (guest, ""), (gone, "8")):
        get("Connection").create(
            id=id_, process_id=process, user_id=user, path="/", opened_at=now(), last_seen_at=now()
        )
    get("Membership").create(connection_id=member, process_id=process, group="g", joined_at=now())
    get("Membership").create(connection_id=guest, process_id=process, group="g", joined_at=now())
    get("Membership").create(
        connection_id=gone, process_id=process, group="g", joined_at=now(), left_at=now()
    )
    migrate(PRESENCE)
    assert dict(Membership.objects.values_list("connection", "user_id")) == {member: "7", guest: "", gone: ""}
    assert set(Connection.objects.values_list("client_id", flat=True)) == {""}
    # Users are present from their next connection on.
    assert not PresentUser.objects.exists()
    assert (presence("g").users, presence("g").anonymous) == ((), 1)

    # A process of the version before still writes, until it is restarted. Its members count as anonymous.
    get("Membership").create(connection_id=member, process_id=process, group="h", joined_at=now())
    assert presence("h").anonymous == 1
    assert Process.objects.count() == 1
