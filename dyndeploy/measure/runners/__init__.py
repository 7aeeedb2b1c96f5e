"""What runs the measuring loop: sessions of ONNX Runtime and TensorRT engines on this machine.

Boards run it themselves, see :mod:`dyndeploy.remote.profiling`.
"""
