"""Training of the Actor on packed shards."""
