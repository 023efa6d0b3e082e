"""How Django finds this app."""

from django.apps import AppConfig

from realtime import checks


class RealtimeConfig(AppConfig):
    name = "realtime"
    label = "realtime"
    verbose_name = "Realtime"
    # Set here, so that a project's own default never asks for a migration of this app.
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        checks.register()
