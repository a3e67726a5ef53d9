"""Proving that a bundle is whole and equals its model."""
