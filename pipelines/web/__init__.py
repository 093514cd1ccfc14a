"""What the report and the review page share: one theme."""
