"""Checks of this project that no tool on PyPI makes."""
