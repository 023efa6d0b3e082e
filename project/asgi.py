"""The ASGI application of the demo project: Django for HTTP, `realtime` for WebSockets."""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
# Before the imports below, because they import models, which needs Django to be set up.
http = get_asgi_application()

from django.conf import settings  # noqa: E402
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler  # noqa: E402

from project.origin import OriginCheck  # noqa: E402
from project.routes import Protocols, Routes  # noqa: E402
from realtime.auth import AuthMiddlewareStack  # noqa: E402
from realtime.routing import websocket_urlpatterns  # noqa: E402

application = Protocols(
    {
        # Without DEBUG, the proxy in front of Daphne serves the files from `manage.py collectstatic`.
        "http": ASGIStaticFilesHandler(http) if settings.DEBUG else http,
        "websocket": OriginCheck(AuthMiddlewareStack(Routes(websocket_urlpatterns))),
    }
)
