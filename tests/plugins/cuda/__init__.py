# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels through their C interface, on a real GPU; see conftest.py for how to run them."""
