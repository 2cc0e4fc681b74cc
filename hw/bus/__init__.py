"""Signatures shared between components, each field declared once."""
