"""Ways to run one shard: torch, onnxruntime."""
