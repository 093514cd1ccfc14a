"""Composition: the graph, the commands, the recipes."""
