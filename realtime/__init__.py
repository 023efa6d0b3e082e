"""Connection liveness for Django Channels: proven alive, or gone within a bound that you choose."""

from realtime.publishing import apublish, publish

__all__ = ["apublish", "publish"]

__version__ = "0.1.0"
