"""ONNX graphs: inspection, shapes, forced masks, labels, MACs, stages, the TensorRT copy, and the passes of export."""
