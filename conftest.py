"""Tests and the kernels they start run under the same environment as the book."""

from tools.book import set_environment

set_environment()
