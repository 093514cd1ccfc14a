"""Nets, codecs, detectors and the clock. Knows no table, no Dask, no video file."""
