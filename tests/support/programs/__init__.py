"""Programs that tests start: servers, databases, and whole sites of them."""
