"""Files and arrays to rows, and answers to words."""
