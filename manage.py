#!/usr/bin/env python
"""Django's command line for this project."""

import os
import sys

from django.core.exceptions import ImproperlyConfigured
from django.core.management import execute_from_command_line
from django.db import OperationalError

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
    try:
        execute_from_command_line(sys.argv)
    except (ImproperlyConfigured, OperationalError) as error:
        if "--traceback" in sys.argv:
            raise
        # What is wrong is outside of the code, and the sentence says all that a traceback would.
        said_by = "The database: " if isinstance(error, OperationalError) else ""
        print(f"{said_by}{str(error).strip()}", file=sys.stderr)
        sys.exit(2)
