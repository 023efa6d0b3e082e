"""Programs that tests start: servers, reapers, Redis, databases, and whole sites of them."""
