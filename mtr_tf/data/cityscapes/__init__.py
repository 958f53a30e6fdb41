# SPDX-License-Identifier: Apache-2.0
"""Cityscapes: street scenes with 19 classes and disparities, from the official files.

Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR
2016. `reading.open_source` opens it, and prepares it first if that has not been done;
`files` says which files are needed and where they are; `examples` makes the arrays of
an example from them, by the rules of `layout` and `resizing`.

This package, `layout`, `resizing`, `files` and `examples` do not import TensorFlow.
"""
