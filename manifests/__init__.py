"""What a source, clip, measure, verdict, sample and shard are, and how each is stored."""
