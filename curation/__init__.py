"""One file a stage: a clip in, measures and products out. Knows no threshold."""
