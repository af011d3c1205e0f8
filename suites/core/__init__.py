"""Measuring machinery: cases, processes, clocks, devices, checks, roofs."""
