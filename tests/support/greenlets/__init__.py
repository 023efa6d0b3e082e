"""Programs that run under gevent or eventlet."""
