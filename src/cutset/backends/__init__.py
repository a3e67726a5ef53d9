"""Ways to run one shard: torch, eager and compiled; onnxruntime; openvino."""
