"""The row that an application would write by itself."""

from django.db import models


class Visit(models.Model):
    room = models.CharField(max_length=100)
    opened_at = models.DateTimeField(auto_now_add=True)
    closed_at = models.DateTimeField(null=True)

    class Meta:
        app_label = "plain"

    def __str__(self) -> str:
        return self.room
