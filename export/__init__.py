"""Makes the files that Triton serves: ONNX graphs now, TensorRT plans and fetched weights in later releases."""
