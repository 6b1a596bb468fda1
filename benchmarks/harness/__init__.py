"""What all benchmarks share: worker processes, ratios, provenance, runs of whole fleets, results files, tables, plots.

Knows no particular benchmark and no particular method. May import edge_runtime, server and export; of the benchmarks,
nothing outside this folder.
"""
