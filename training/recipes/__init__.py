"""Shipped recipes, TOML."""
