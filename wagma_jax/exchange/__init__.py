"""Averaging across processes over MPI."""
