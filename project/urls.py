"""The HTTP addresses of the demo project."""

from django.contrib import admin
from django.urls import include, path
from django.views.i18n import JavaScriptCatalog

from project import views

urlpatterns = [
    path("", views.index, name="index"),
    path("names", views.names, name="names"),
    path("admin/", admin.site.urls),
    path("i18n/", include("django.conf.urls.i18n")),
    # The texts of the page alone: `realtime` has none, and those of the admin stay in the admin.
    path("texts.js", JavaScriptCatalog.as_view(packages=["realtime"]), name="texts"),
    path("", include("realtime.urls")),
]
