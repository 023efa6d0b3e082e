"""The HTTP addresses of the demo project."""

from django.contrib import admin
from django.urls import include, path

from project import views

urlpatterns = [
    path("", views.index, name="index"),
    path("admin/", admin.site.urls),
    path("", include("realtime.urls")),
]
