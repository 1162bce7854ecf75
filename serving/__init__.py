"""What the Triton model adapters call: engines, tensors, tracking, mel, and the server launcher."""
