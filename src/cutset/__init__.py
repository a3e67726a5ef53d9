"""Split a trained PyTorch model where its architecture allows, and run the pieces as a pipeline."""

__version__ = "0.1.0"
