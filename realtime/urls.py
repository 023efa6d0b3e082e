"""The HTTP paths for operators and probes."""

from django.urls import path

from realtime import views

__all__ = ["urlpatterns"]

urlpatterns = [
    path("metrics", views.metrics, name="realtime-metrics"),
    path("health/live", views.live, name="realtime-live"),
    path("health/ready", views.ready, name="realtime-ready"),
]
