"""The tests of records and admin, repeated on PostgreSQL."""

import os
import subprocess
import sys

import pytest
from django.db import connection

from tests.support.programs.postgres import PostgresServer
from tests.support.programs.servers import CHECKOUT

REPEATED = [
    "records/test_connection_rows.py",
    "records/test_client_rows.py",
    "records/test_process_rows.py",
    "records/test_batch.py",
    "records/test_detail_rows.py",
    "records/test_presence_rows.py",
    "records/test_presence_model.py",
    "records/test_query_plans.py",
    "records/test_upgrade.py",
    "admin",
]


@pytest.mark.acceptance  # for its server and its time
def test_records_and_admin_pass_their_tests_on_postgresql_too():
    if connection.vendor == "postgresql":
        pytest.skip("DATABASE_URL is a PostgreSQL already: these tests run on it")
    with PostgresServer() as postgres:
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2"]
            + [f"tests/integration/{name}" for name in REPEATED],
            cwd=CHECKOUT,
            env=os.environ | {"DATABASE_URL": postgres.url},
            capture_output=True,
            text=True,
            timeout=280,
        )

    assert run.returncode == 0, run.stdout + run.stderr
