"""The app configuration for INSTALLED_APPS."""

from contextlib import suppress
from typing import Any

from django.apps import AppConfig, apps
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from realtime import checks
from realtime.transports import finding

__all__ = ["RealtimeConfig"]

_REMEDY = """\
INSTALLED_APPS has two applications with the label {label!r}: {ours} (this package, \
django-channels-realtime) and {theirs}. Give this package another label. In an apps.py of your project:

    from realtime.apps import RealtimeConfig

    class LivenessConfig(RealtimeConfig):
        label = "liveness"

and in INSTALLED_APPS, write the dotted path of LivenessConfig instead of "realtime". \
docs/howto/move-an-existing-project.md has the steps."""


class RealtimeConfig(AppConfig):
    """The application. If your project has an application with its label, subclass it with another one."""

    name = "realtime"
    label = "realtime"
    verbose_name = "Realtime"
    # Set here, so that a project's own default never makes a migration of this app necessary.
    default_auto_field = "django.db.models.BigAutoField"
    _is_looking = False

    def __init__(self, app_name: str, app_module: Any) -> None:
        """Create the configuration, as Django does for each entry of INSTALLED_APPS.

        Raises:
            ImproperlyConfigured: Another application has the same label. Django would say only that two have
                it, and not which ones.
        """
        super().__init__(app_name, app_module)
        if RealtimeConfig._is_looking:
            # This is one of the entries that the search below creates.
            return
        RealtimeConfig._is_looking = True
        try:
            theirs = apps.app_configs.get(self.label) or _later_app_with(self.label)
        finally:
            RealtimeConfig._is_looking = False
        if theirs is not None and theirs.name != self.name:
            raise ImproperlyConfigured(_REMEDY.format(label=self.label, ours=self.name, theirs=theirs.name))

    def ready(self) -> None:
        checks.register()
        finding.hook_servers()
        if apps.is_installed("django.contrib.auth"):
            # By its name: it imports models, and this module is imported before they can be.
            import_string("realtime.user_events.connect")()


def _later_app_with(label: str) -> AppConfig | None:
    """Return the application of INSTALLED_APPS that Django has not come to yet and that has this label."""
    for entry in settings.INSTALLED_APPS:
        # Only entries that look like it, because each is imported here.
        if label in entry.split(".") and entry.partition(".")[0] != RealtimeConfig.name:
            # Django reports an entry that cannot be imported when it comes to it.
            with suppress(Exception):
                found = AppConfig.create(entry)
                if found.label == label and found.name != RealtimeConfig.name:
                    return found
    return None
