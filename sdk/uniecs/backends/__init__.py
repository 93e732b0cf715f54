"""Graphs to numbers: one module for each foreign engine."""
