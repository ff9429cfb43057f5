"""One job a file."""
