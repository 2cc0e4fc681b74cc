"""What a run must obey, checked from its event log."""
