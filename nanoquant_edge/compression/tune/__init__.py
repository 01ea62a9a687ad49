# SPDX-License-Identifier: Apache-2.0
"""Tuning around the factorization: blocks, latent signs, scales."""
