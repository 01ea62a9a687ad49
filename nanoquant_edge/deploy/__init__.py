# SPDX-License-Identifier: Apache-2.0
"""A folder that holds all a board needs: bundle, wheels, libraries, scripts, service, container recipe."""

from __future__ import annotations

from .deployment import Deployment
from .folder import deploy
from .options import DeployOptions

__all__ = ["DeployOptions", "Deployment", "deploy"]
