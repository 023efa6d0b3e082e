"""What this project is measured against: the chat of the Channels tutorial, with nothing of ours in it."""
