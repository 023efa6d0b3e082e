"""The settings for the tests of djangochannelsrestframework (its source distribution has none)."""

from django.conf import settings


def pytest_configure() -> None:
    settings.configure(
        SECRET_KEY="suite",
        INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "channels", "tests"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3"}},
        CHANNEL_LAYERS={"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}},
    )
