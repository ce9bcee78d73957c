"""The mathematics: torch, numpy, scipy. Knows nothing of Prefect, Polars, storage or the tasks.

Shapes stand in names as capital suffixes, one legend for the whole package:
U users, I items, N = U + I nodes, E edges, D width of an embedding, B batch, K length of a list.
Users are nodes 0..U-1 and items are nodes U..N-1 of one homogeneous bipartite graph.
"""
