"""Programs as ONNX graphs, with attention and quantised layers as nodes."""
