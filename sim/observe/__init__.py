"""What looks at a run: the event log and what is made from it."""
