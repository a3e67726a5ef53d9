"""Measuring: pieces, stages, messages, links, whole pipelines and clusters."""
