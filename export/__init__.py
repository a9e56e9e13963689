"""Export: a trained checkpoint to an ONNX bundle, with proof that nothing changed."""
