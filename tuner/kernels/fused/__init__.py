"""Fused ops in Triton, a file each with a plain reference beside them. Importing one imports Triton, which a
PyTorch for CPUs does not bring: tuner.kernels.apply does so where a model is on a GPU.
"""
