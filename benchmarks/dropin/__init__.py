"""The chat of the Channels tutorial with one word changed: the base class of its consumer."""
