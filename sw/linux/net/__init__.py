"""Protocols of the receive path."""
