# SPDX-License-Identifier: Apache-2.0
"""The backend on ONNX Runtime, on a CPU or an NVIDIA GPU."""
