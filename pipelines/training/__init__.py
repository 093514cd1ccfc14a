"""`xstreamer train` and `export-actor`: what they are told, and what people see of a run."""
