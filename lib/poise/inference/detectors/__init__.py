"""Person detectors: torchvision's and ONNX files."""
