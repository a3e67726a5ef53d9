"""The pipeline at work: channels between neighbours, workers, and the caller's session."""
