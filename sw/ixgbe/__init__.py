"""The kernel's driver for the card, after Linux's ixgbe: :mod:`main` brings it up, :mod:`rx` receives."""
