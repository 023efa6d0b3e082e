"""The ASGI application of the demo project: Django for HTTP, `realtime` for WebSockets."""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
# This sets Django up. It comes before the imports below, because they import models.
http = get_asgi_application()

from django.conf import settings  # noqa: E402
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler  # noqa: E402

from realtime.auth import AuthMiddlewareStack, OriginCheck  # noqa: E402
from realtime.routing import ProtocolTypeRouter, URLRouter, websocket_urlpatterns  # noqa: E402

if settings.DEBUG:
    # Without DEBUG, the proxy in front of the server sends the files that `manage.py collectstatic` copied.
    http = ASGIStaticFilesHandler(http)

application = ProtocolTypeRouter(
    {
        "http": http,
        # From the outside in: refuse pages of other sites, find the user, choose the consumer by the path.
        "websocket": OriginCheck(AuthMiddlewareStack(URLRouter(websocket_urlpatterns))),
    }
)
