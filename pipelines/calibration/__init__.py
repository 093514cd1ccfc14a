"""Thresholds learned from reviews: what people's decisions say about each rule of a profile."""
