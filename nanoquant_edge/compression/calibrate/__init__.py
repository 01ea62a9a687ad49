# SPDX-License-Identifier: Apache-2.0
"""What calibration text tells: windows, importances, curvature, sensitivities, and the ranks that follow from them."""
