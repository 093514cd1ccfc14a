"""The streaming runner."""
