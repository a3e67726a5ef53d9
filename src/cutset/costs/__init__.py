"""What a stage, a link and a device cost, as plain numbers."""
