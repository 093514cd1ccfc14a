"""Recipes (which backend measures a stage) and profiles (which bounds decide), as TOML."""
