"""Bundles: the pieces on disk, their specification, how they are written, read and proven."""
