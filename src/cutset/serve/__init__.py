"""Serving over HTTP: the Open Inference Protocol v2, a page, metrics (extra ``cutset[serve]``)."""
