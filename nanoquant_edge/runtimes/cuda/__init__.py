# SPDX-License-Identifier: Apache-2.0
"""Our CUDA kernels without a framework around them."""
