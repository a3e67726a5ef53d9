"""The checks that run torch programs, beside the numbers of the whole model."""
