"""The app configuration for INSTALLED_APPS.

Private: docs/reference.md lists the public names.
"""

from django.apps import AppConfig

from realtime import checks
from realtime.transports import finding


class RealtimeConfig(AppConfig):
    name = "realtime"
    label = "realtime"
    verbose_name = "Realtime"
    # Set here, so that a project's own default never makes a migration of this app necessary.
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        checks.register()
        finding.hook_servers()
