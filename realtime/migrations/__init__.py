"""The migrations of this app. They name it by its label, which a project may have changed."""

from django.apps import apps

_config = apps.get_containing_app_config(__name__)
assert _config is not None, "Django loads migrations only of installed apps"  # noqa: S101

LABEL = _config.label
