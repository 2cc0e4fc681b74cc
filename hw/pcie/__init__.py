"""The link between card and host, and the root complex at its upper end."""
