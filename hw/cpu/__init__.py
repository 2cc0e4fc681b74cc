"""What software runs on: the core port and the interrupt controller."""
