"""The torch networks. Nothing here is imported at run time; `export` turns them into ONNX.

Shapes, for every module below: B = batch, T = steps in time, D = model width, C = 8 classes, A = 3 attributes,
M = members. A mask is `bool [B, T]`, true on real steps.
"""
