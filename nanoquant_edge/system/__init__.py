# SPDX-License-Identifier: Apache-2.0
"""The machine under us: files that are never half written, disks, memory, and the native libraries."""
