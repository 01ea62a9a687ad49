# SPDX-License-Identifier: Apache-2.0
"""A folder that holds all a board needs: bundle, wheels, libraries, scripts, service, container recipe."""

from __future__ import annotations

from .folder import Deployment, deploy

__all__ = ["Deployment", "deploy"]
