"""The pipeline at work: workers, the ledger of what is on its way, and the caller's session."""
