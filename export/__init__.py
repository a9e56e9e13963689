"""From a trained checkpoint to a bundle: ONNX graphs, checked against torch before anything is written."""
