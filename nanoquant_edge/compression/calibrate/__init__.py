# SPDX-License-Identifier: Apache-2.0
"""What calibration text tells: windows, importances, curvature, sensitivities, and the ranks that follow from them.

Text is tokenized as validation and prompts tokenize it: the one tokenizer of a model is in `models.model_tokenizer`.
"""
