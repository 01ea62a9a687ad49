# SPDX-License-Identifier: Apache-2.0
"""A weight becomes two sign matrices: LB-ADMM, plain and under curvature."""
