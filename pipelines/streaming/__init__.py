"""`xstreamer stream`."""
