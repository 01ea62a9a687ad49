# SPDX-License-Identifier: Apache-2.0
"""Pages that people look at: one HTML file each, light and dark, without outside requests, or Markdown.

`page` is what a page is made of and how it is written, `plots` draws, the others say what stands on which page.
"""

from __future__ import annotations
