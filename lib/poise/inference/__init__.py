"""Images or video in, poses out; the same networks as ONNX or TorchScript files."""
