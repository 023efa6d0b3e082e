"""The standard of comparison: the chat of the Channels tutorial, without any part of this project."""
