"""The migrations and the texts of the models, without a database."""

import uuid

import pytest
from django.apps import apps
from django.db import models
from django.utils.functional import Promise

from realtime.closing import CloseReason
from realtime.models import Connection, Membership, PresenceWatch, PresentUser, Process, Round

MODELS = [Process, Connection, Membership, PresentUser, PresenceWatch, Round]
FIELDS = [field for model in MODELS for field in model._meta.local_fields]


def test_these_are_all_models_of_the_app():
    assert set(apps.get_app_config("realtime").get_models()) == set(MODELS)


@pytest.mark.parametrize("field", FIELDS, ids=str)
def test_a_projects_settings_change_no_migration_of_a_field(field):
    _, path, _, options = field.deconstruct()

    assert path.startswith("django.db.models."), "a field class of another package"
    assert "choices" not in options, "each new close reason would ask for a migration"
    assert not [value for value in options.values() if isinstance(value, Promise)], "translated text"
    if isinstance(field, models.ForeignKey):
        assert options["to"].split(".")[0] == "realtime", "a model that a project may swap"


@pytest.mark.parametrize("model", MODELS)
def test_no_primary_key_depends_on_a_projects_default(model):
    assert model._meta.pk.auto_created is False


@pytest.mark.parametrize("model", MODELS)
def test_no_option_of_a_model_is_translated_text(model):
    assert not [value for value in model._meta.original_attrs.values() if isinstance(value, Promise)]


def test_the_app_names_its_own_default_for_primary_keys():
    config = apps.get_app_config("realtime")

    assert config.default_auto_field == "django.db.models.BigAutoField"
    assert config._is_default_auto_field_overridden
    assert (config.label, config.verbose_name) == ("realtime", "Realtime")


def test_a_channel_layers_longest_names_fit():
    """Channels allows names of fewer than 100 characters (channels.layers.BaseChannelLayer.MAX_NAME_LENGTH).

    The alias of the layer may precede the name of a channel.
    """
    assert Process._meta.get_field("channel_name").max_length == 200
    assert Membership._meta.get_field("group").max_length == 100


def test_every_close_reason_fits_its_column():
    limit = Connection._meta.get_field("close_reason").max_length

    assert all(len(reason.value) <= limit for reason in CloseReason)


def test_rows_are_named_by_what_people_look_for():
    process = Process(host="web-1", pid=4711)
    connection = Connection(id=uuid.UUID(int=7), process=process)

    assert str(process) == "web-1:4711"
    assert str(connection) == "00000000-0000-0000-0000-000000000007"
    assert str(Membership(connection=connection, group="public.news")) == f"{connection.id} in public.news"
    assert str(Round(number=12)) == "12"
