"""Speech of the demo's talking heads; README.md says how it was made."""
