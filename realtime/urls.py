"""The HTTP paths for operators, probes and clients."""

from django.urls import path

from realtime import views

__all__ = ["urlpatterns"]

urlpatterns = [
    path("metrics", views.metrics, name="realtime-metrics"),
    path("health/live", views.live, name="realtime-live"),
    path("health/ready", views.ready, name="realtime-ready"),
    path("realtime/ticket", views.ticket, name="realtime-ticket"),
]
