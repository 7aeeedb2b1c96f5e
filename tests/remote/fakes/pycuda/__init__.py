"""A stand-in for pycuda: device memory is a dictionary."""

VERSION_TEXT = "2022.1"
