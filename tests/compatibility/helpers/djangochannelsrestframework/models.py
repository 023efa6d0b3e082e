"""The models for the tests of djangochannelsrestframework (its source distribution has none)."""

from django.db import models


class TestModel(models.Model):
    __test__ = False

    name = models.CharField(max_length=100)

    class Meta:
        app_label = "tests"


class TestModelWithCustomPK(models.Model):
    __test__ = False

    name = models.CharField(max_length=100, primary_key=True)
    description = models.TextField(null=True)

    class Meta:
        app_label = "tests"
