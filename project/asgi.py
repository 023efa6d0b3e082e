"""The ASGI application of the demo project: Django for HTTP, `realtime` for WebSockets."""

import os

from django.core.asgi import get_asgi_application

# A server imports this file without `manage.py`, which would set this.
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

# Read from the inside out: choose the consumer by the path (the package has the paths of its own consumer).
# Before that, put the session and the user into the scope, because the policy depends on the user.
# Before that, refuse pages of other sites, because a browser sends the user's cookies from them too.
websocket = OriginCheck(AuthMiddlewareStack(URLRouter(websocket_urlpatterns)))

# The server calls one application. It chooses by the type of the connection.
application = ProtocolTypeRouter({"http": http, "websocket": websocket})
