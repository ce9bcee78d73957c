"""The work of a night, one room a stage, in the order the data visits them:

ingest -> graph -> train -> evaluate -> recommend -> publish -> report

Rooms do not import each other. What they share is beside them: config, contracts, errors, run, store.
"""
