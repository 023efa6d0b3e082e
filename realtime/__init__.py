"""Connection liveness for Django Channels: proven alive, or gone within a bound that you choose."""

from realtime.groups import apublish, publish

__all__ = ["apublish", "publish"]
